"""The museum: every room runs, its verdict is what its rule says of the measured numbers, and other numbers would have
given another verdict."""

import math
import re
from pathlib import Path

import pytest

import lmcourse.experiments.museum as museum
from lmcourse.experiments.museum import (
    NOTES,
    ROOMS,
    VERDICTS,
    MuseumError,
    MuseumFilter,
    Room,
    grade,
    museum_table,
    visit,
)

ROOT = Path(__file__).parents[1]
EXPECTED = {
    'right': """loss-and-perplexity-curves teacher-forcing types-33000 long-range two-implementations two-examples
        random-fifty-thousand dense-parameters losses-fit batches-counted""",
    'half right': """loss-table equal-choices best-after-two-epochs short-and-capable faster-convergence split-sizes
        regularisation-confirmed log-of-a-softmax close-to-one distance-from-the-truth lower-is-better rate-too-high
        parameters-per-sequence same-memory parameters-of-five times-the-optimum validation-tokens capacity
        every-window blocks-against-dense five-and-a-half-times doubled epochs-compensate two-cards
        state-over-the-end""",
    'wrong': """answers-in-sight blocks-keep-their-place names-of-blocks unique-tokens longer-underfits
        identical-conditions two-results fewer-gates tokenizer-named
        each-part-pays bigram-ten-thousand one-scale small-lstm competitive-at-a-hundred effective-batch
        first-epochs-match all-causes-at-once short-windows two-durations two-scales against-402 blocks-in-a-matrix
        accuracy-17 ratio-of-the-first times-the-data over-the-optimum twenty-to-one overtrained one-epoch diversity
        isolated-variable starved ceiling forty-two-minutes mean-of-batch-means mean-of-perplexities padding-scored
        bytes-by-piece bytes-of-special-tokens one-point-zero-two softmax-over-the-wrong-axis validation-in-train
        rare-words-hidden unk-in-three copied-weights scheduler-steps-too-rarely dropout-left-on smoothing-reported
        nats-taken-for-bits bos-or-eos""",
    'untested': 'sixteen-minutes short-warmup least-width grammar',
}
VERDICT = {name: verdict for verdict, names in EXPECTED.items() for name in names.split()}
# rooms of full-size runs: untested until a record of the run exists, and then whatever it says
RUNS = """lstm-a-152 gru-a-155 lstm-b-196 gru-b-179 lstm-base-128 awd-lstm-80 thirty-epochs dense-baseline experiment-1
    experiment-2 experiment-3 experiment-4 experiment-5""".split()


# ---- the rooms


def test_every_room_is_listed_here_and_under_one_name():
    "A room that is added, renamed or defined twice is noticed."
    assert set(ROOMS) == set(VERDICT) | set(RUNS)
    source = (ROOT / 'lmcourse' / 'experiments' / 'museum.py').read_text(encoding='utf-8')
    assert len(re.findall(r'^@room\(|^_(?:run|number)_room\(', source, re.M)) == len(ROOMS)


def test_there_are_enough_rooms_and_every_note_has_some():
    assert len(ROOMS) >= 35
    assert {r.note for r in ROOMS.values()} == set(NOTES)


@pytest.mark.parametrize('name', list(ROOMS))
def test_a_room_says_what_it_needs_to_say(name):
    "A claim, the detail of its test, and a lesson that exists where it names one."
    r = ROOMS[name]
    assert r.name == name and r.note in NOTES
    assert r.claim.endswith('.') and len(r.claim) > 20
    assert r.test.__doc__
    assert not r.lesson or (ROOT / 'nbs' / f'{r.lesson}.ipynb').exists()


@pytest.mark.parametrize('name', list(ROOMS))
def test_a_verdict_is_what_the_rule_says_of_the_numbers(name):
    found = visit(name)
    assert found.verdict == ROOMS[name].judge(found.measured)
    assert found.verdict in VERDICTS
    assert '{' not in found.why
    assert found.why.endswith(('.', '.)'))


@pytest.mark.parametrize('name', list(VERDICT))
def test_a_verdict_is_the_one_of_the_lesson(name):
    assert visit(name).verdict == VERDICT[name], visit(name)


@pytest.mark.parametrize('name', list(ROOMS))
def test_other_numbers_would_give_another_verdict(name):
    "The rule is fed the numbers that the room names as its opposite: some of the measured ones, changed."
    found = visit(name)
    other = ROOMS[name].opposite(found.measured)
    assert other.keys() == found.measured.keys()
    assert other != found.measured
    assert ROOMS[name].judge(other) != found.verdict


@pytest.mark.parametrize('name', [r.name for r in ROOMS.values() if r.note == 'field'])
def test_a_mistake_of_the_field_changes_the_number_and_is_caught(name):
    found = visit(name)
    assert found.verdict in ('wrong', 'half right')
    assert 'Caught by' in found.why or 'random tokens' in found.why


# ---- claims about runs


class Record:
    "A run on record, as the rooms see it."

    def __init__(self, recipe, epochs, perplexity, corpus='wikitext-2', tiny=False):
        self.recipe, rows = recipe, [(e, 900.0) for e in range(1, epochs)] + [(epochs, perplexity)]
        self.rows = [dict(split='validation', epoch=float(e), perplexity=p) for e, p in rows] + [
            dict(epoch=0.5, step=1)
        ]
        self.summary = dict(
            tiny=tiny, epochs=epochs, finished=True, validation=dict(corpus=corpus, perplexity=perplexity)
        )

    def metrics(self):
        return self.rows


def measured_with(monkeypatch, *runs):
    monkeypatch.setattr(museum, 'records', lambda: list(runs))
    return ROOMS['lstm-a-152'].test()


def test_a_record_of_the_run_decides_the_room(monkeypatch):
    verdict = lambda *runs: ROOMS['lstm-a-152'].judge(measured_with(monkeypatch, *runs))
    assert verdict() == 'untested'
    assert verdict(Record('lstm-a', 2, 155.0)) == 'right'
    assert verdict(Record('lstm-a', 2, 170.0)) == 'half right'
    assert verdict(Record('lstm-a', 3, 500.0)) == 'wrong'


def test_a_run_that_is_too_short_tiny_or_of_another_text_decides_nothing(monkeypatch):
    for run in (
        Record('lstm-a', 1, 152.0),
        Record('gru-a', 2, 152.0),
        Record('lstm-a', 2, 152.0, tiny=True),
        Record('lstm-a', 2, 152.0, corpus='stdlib'),
    ):
        assert measured_with(monkeypatch, run)['measured'] is None


def test_the_epoch_of_the_claim_is_taken_and_not_the_last(monkeypatch):
    run = Record('lstm-a', 4, 152.0)
    assert measured_with(monkeypatch, run)['measured'] == 900.0


@pytest.mark.parametrize('name', [n for n in RUNS if n not in ('thirty-epochs', 'dense-baseline')])
def test_a_room_of_a_run_says_what_it_would_take(name):
    m = visit(name).measured
    assert m['tokens'] == m['epochs'] * round(m['tokens'] / m['epochs'])
    assert m['operations'] > 1e6 * m['tokens']
    assert m['hours'] > 0
    if m['measured'] is None:
        assert f"{m['tokens']:,} tokens" in visit(name).why


def test_a_cost_is_tokens_times_operations_at_a_measured_speed():
    "The whole run of note 004's first decoder costs what its record took."
    run = museum.best_record('chinchilla-1')
    recipe = museum.get_recipe('chinchilla-1')
    cost = museum._cost(run.summary['tokens_seen'], museum._operations_per_token(recipe, 50_257), recipe.model)
    assert math.isclose(
        cost['hours'] * 3600, run.summary['tokens_seen'] / run.summary['tokens_per_second'], rel_tol=1e-9
    )


@pytest.mark.parametrize(
    'hours, words', [(0.5, 'about 30 minutes on 1 CPU core,'), (30, 'about 30 hours'), (240, 'about 10 days')]
)
def test_a_duration_is_told_in_a_unit_that_fits(hours, words):
    assert museum._time(dict(hours=hours, cores=1, source='a record')).startswith(words)


# ---- arithmetic that several rooms share


def test_windows_that_overlap_by_half_are_counted_as_a_loop_counts_them():
    for tokens, length in ((100, 10), (101, 10), (997, 64)):
        assert museum._windows(tokens, length) == len(range(0, tokens - length + 1, length // 2))


def test_note_003s_sequences_are_windows_of_256():
    assert [museum._windows(museum._TOKENS_003, n) for n in (128, 192, 256)] == [33_467, 22_311, 16_733]
    assert museum._windows(museum._TOKENS_003 - 1, 256) == 16_732


def test_a_schedule_that_is_stepped_with_every_batch_ends_at_zero():
    assert museum._rates(1000, 1, 100)[-1] < 1e-4
    assert museum._rates(1000, 4, 100)[-1] > 0.8
    assert len(museum._rates(1000, 4, 100)) == 250


def test_the_six_changes_of_note_003_are_counted():
    assert museum._CHANGED_003 == 6


def test_settings_of_two_recipes_are_compared_without_their_names():
    assert museum._settings_changed('chinchilla-1', 'chinchilla-1') == 0
    assert museum._settings_changed('chinchilla-1', 'chinchilla-2') == 3


def test_batches_of_a_text_have_one_right_average():
    right = {round(museum._batch_averages(rows)['right'], 9) for rows in (1, 7, 50)}
    assert len(right) == 1


# ---- rules, tables and the filter


def test_a_grade_is_right_half_right_or_wrong():
    assert [grade(True, True), grade(True), grade(False, True), grade(False)] == [
        'right',
        'right',
        'half right',
        'wrong',
    ]


def test_a_rule_that_gives_no_verdict_is_refused():
    with pytest.raises(MuseumError, match="the rule of x gives 'perhaps'"):
        Room('x', 'field', '', None, lambda: 'perhaps', '', {}).judge({})


def test_a_room_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(MuseumError, match='there is no room .*bigram-ten-thousand'):
        visit('no-such-room')


def test_a_visit_runs_the_test_once(monkeypatch):
    calls = []
    r = Room(
        'twice', 'field', 'c', lambda: calls.append(1) or {'x': 1}, lambda x: grade(x == 1), 'It is {x}.', {'x': 2}
    )
    monkeypatch.setitem(ROOMS, 'twice', r)
    assert [visit('twice').why, visit('twice').verdict] == ['It is 1.', 'right']
    assert len(calls) == 1


def test_a_finding_shows_claim_verdict_measurement_and_what_would_change_it():
    text = visit('bigram-ten-thousand')._repr_markdown_()
    for part in (
        'note 003',
        'about 10,000',
        '**wrong**',
        '166 to 421',
        'would be *right* with highest = 9500',
        'lesson 23',
    ):
        assert part in text


def test_the_table_has_every_room_with_its_verdict():
    lines = museum_table().splitlines()[2:]
    assert [line.split(' | ')[0].strip('| ') for line in lines] == list(ROOMS)
    assert [line.split(' | ')[3] for line in lines] == [visit(name).verdict for name in ROOMS]


@pytest.mark.parametrize('verdict', VERDICTS)
def test_the_table_can_be_filtered_by_verdict(verdict):
    lines = museum_table(verdict, details=False).splitlines()[2:]
    assert len(lines) == sum(visit(name).verdict == verdict for name in ROOMS)


def test_the_table_can_be_filtered_by_note_and_verdict():
    lines = museum_table('wrong', '003').splitlines()[2:]
    assert len(lines) == sum(r.note == '003' and visit(r.name).verdict == 'wrong' for r in ROOMS.values()) > 0


@pytest.mark.parametrize('wrong', [dict(verdict='maybe'), dict(note='005')])
def test_a_filter_that_fits_nothing_is_refused(wrong):
    with pytest.raises(MuseumError, match='there is no'):
        museum_table(**wrong)


def test_the_menus_filter_the_rooms():
    menus = MuseumFilter()
    assert menus.rooms == list(ROOMS)
    menus.note.value = '001'
    assert menus.rooms == [r.name for r in ROOMS.values() if r.note == '001']
    menus.verdict.value = 'wrong'
    assert menus.rooms == ['each-part-pays']
    assert '<td' in menus.table.value and 'Weight drop' in menus.table.value
    menus.note.value = menus.verdict.value = None
    assert f'<p>{len(ROOMS)} rooms' in menus.table.value


def test_the_menus_show_markup_as_text():
    menus = MuseumFilter()
    menus.note.value = 'field'
    assert '&lt;unk&gt;' in menus.table.value and '<unk>' not in menus.table.value
