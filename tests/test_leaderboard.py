"The leaderboard: groups that never mix conditions, ranks, formats that parse back, and runs of the reader's own."

import csv
import functools
import io
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import stage

from lmcourse.cli import main
from lmcourse.experiments import leaderboard as L
from lmcourse.measure.perplexity import Measurement, incompatibilities
from lmcourse.training.recipes import get_recipe, recipe_names
from lmcourse.training.runs import all_baselines, best_record, publish, records

ROOT = Path(__file__).parents[1]
HOSTILE = [
    '<script>alert(1)</script>',
    '=HYPERLINK("x")',
    'a|b\n| c',
    '[x](javascript:y)',
    '`x` $\\href{a}{b}$',
    '"quoted", with a comma',
    '-2+3',
    '@x',
]


def measured(perplexity=50.0, **changes):
    "A measurement as a record holds it."
    plain = dict(best_record('playground-lstm').summary['test'])
    nats = math.log(perplexity)
    num_bytes, unknown = changes.get('num_bytes', plain['num_bytes']), changes.get('num_unk', 0)
    bits = nats * plain['num_tokens'] / num_bytes / math.log(2) if num_bytes and not unknown else None
    return plain | dict(perplexity=perplexity, nats_per_token=nats, bits_per_byte=bits, ci95=None) | changes


def an_entry(perplexity=50.0, name='model', seed=None, setting='', **changes):
    return L.entry(name, measured(perplexity, **changes), 'test', seed=seed, setting=setting)


def a_run(folder, recipe='own', seed=0, config=None, summary=None, **measurement):
    "A run's folder as training leaves it, without weights."
    folder.mkdir(parents=True)
    whole = dict(recipe=recipe, seed=seed, data={'corpus': 'stdlib'}, train={'seed': seed, 'device': 'auto'})
    whole |= config or {}
    m = measured(**measurement)
    done = dict(recipe=recipe, seed=seed, finished=True, epochs=1.0, seconds=2.0, device='cpu', num_parameters=1000)
    done |= dict(validation=m | {'split': 'validation'}, test=m) | (summary or {})
    (folder / 'config.json').write_text(json.dumps(whole))
    (folder / 'summary.json').write_text(json.dumps(done))
    (folder / 'environment.json').write_text(json.dumps(dict(processor='A processor', threads=2, gpu=None)))
    (folder / 'metrics.jsonl').write_text(json.dumps(dict(step=1, tokens_seen=10, train_nats=4.0 + seed)) + '\n')
    return folder


def yours(board):
    return [r for g in board.groups for r in g.rows if r.yours]


def tables(markdown):
    "Every table of a Markdown text as rows of cells, read by the parser that makes the site."
    from markdown_it import MarkdownIt

    rows, tokens = [], MarkdownIt('commonmark', {'html': True}).enable('table').parse(markdown)
    for t in tokens:
        assert not t.type.startswith('html')
        if t.type == 'tr_open':
            rows.append([])
        if t.type == 'inline' and rows:
            assert {c.type for c in t.children} <= {'text', 'text_special'}, t.content
            rows[-1].append(''.join(c.content for c in t.children))
        if t.type == 'heading_open':
            rows.append([])
    return rows


@pytest.fixture(scope='module', autouse=True)
def read_once():
    "The package's own records do not change while the tests run."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(L, '_stored', functools.lru_cache(L._stored))
        yield


@pytest.fixture(scope='module')
def board():
    return L.leaderboard()


# ---- groups


@pytest.mark.parametrize(
    'field, other',
    [
        ('corpus', 'another'),
        ('split', 'validation'),
        ('fingerprint', '0' * 16),
        ('tokenizer', 'bpe:1024'),
        ('vocab_size', 1024),
        ('eos', '<eos>'),
        ('adaptation', 'neural cache'),
    ],
)
def test_two_measurements_that_differ_in_a_condition_are_never_ranked_together(field, other):
    "Each of the six conditions of `incompatibilities`, and adaptation."
    a, b = an_entry(), an_entry(40.0, **{field: other})
    groups = [g for g in L.group_entries([a, b]) if g.unit == 'perplexity']
    assert [len(g.rows) for g in groups] == [1, 1]
    assert [g.rows[0].rank for g in groups] == [1, 1]
    both = [Measurement.from_dict(measured(**c)) for c in ({}, {field: other})]
    assert bool(incompatibilities(*both)) == (field != 'adaptation')


@pytest.mark.parametrize(
    'changes',
    [dict(context_length=64, stride=32), dict(state_carried=False), dict(eval_batch_size=1), dict(accuracy=None)],
)
def test_what_is_only_told_beside_a_row_does_not_divide_a_group(changes):
    [group] = L.group_entries([an_entry(name='a'), an_entry(40.0, name='b', **changes)])
    assert [(r.rank, r.model) for r in group.rows] == [(1, 'b'), (2, 'a')]


def test_the_board_agrees_with_lesson_two(board):
    "Any two records whose conditions are equal have nothing that forbids a comparison, and the other way round."
    found = [Measurement.from_dict(r[s]) for r in all_baselines() for s in ('validation', 'test')]
    scored = [r.summary[s] for r in records() for s in ('validation', 'test')]  # a run that goes on has no test yet
    found += [Measurement.from_dict(m) for m in scored if m]
    for a in found:
        for b in found:
            assert (L.Conditions.of(a) == L.Conditions.of(b)) == (not incompatibilities(a, b))
    assert {L.Conditions.of(m) for m in found} <= {g.conditions for g in board.groups}


def test_every_published_run_and_every_baseline_stands_on_the_board(board):
    values = {round(r.value, 9) for g in board.groups if g.unit == 'perplexity' for r in g.rows}
    for r in [*(r.summary for r in records()), *all_baselines()]:
        for split in ('validation', 'test'):
            assert r.get('recipe') or round(r[split]['perplexity'], 9) in values
    assert {r.recipe for r in records()} <= {r.model.partition(',')[0] for g in board.groups for r in g.rows}


def test_bits_per_byte_join_tokenizers_over_one_text():
    a, b = an_entry(50.0, 'a'), an_entry(300.0, 'b', tokenizer='gpt2', vocab_size=50_257, num_tokens=283_287)
    b = replace(b, bits_per_byte=0.5)
    groups = {g.unit: g for g in L.group_entries([a, b]) if g.unit == 'bits_per_byte'}
    assert [r.model for r in groups['bits_per_byte'].rows] == ['b', 'a']
    assert [r.tokenizer for r in groups['bits_per_byte'].rows] == ['gpt2', 'bpe:2048']


@pytest.mark.parametrize(
    'changes',
    [
        dict(fingerprint='1' * 16),
        dict(split='validation'),
        dict(num_unk=3),
        dict(num_bytes=None),
        dict(tokenizer='whitespace'),
    ],
)
def test_no_bits_per_byte_for_another_text_or_where_bytes_mean_nothing(changes):
    other = dict(tokenizer='gpt2', vocab_size=50_257) | changes
    groups = L.group_entries([an_entry(), an_entry(40.0, **other)])
    assert {g.unit for g in groups} == {'perplexity'}


def test_a_row_in_bits_has_the_interval_of_its_perplexity():
    a = an_entry(50.0, 'a', ci95=(45.0, 55.0))
    row = L.pool_seeds([a], 'bits_per_byte')
    assert row.low / row.value == pytest.approx(math.log(45) / math.log(50))
    assert row.high / row.value == pytest.approx(math.log(55) / math.log(50))


# ---- rows and ranks


def test_rows_are_sorted_and_ranks_belong_to_their_group(board):
    for g in board.groups:
        values, ranks = [r.value for r in g.rows], [r.rank for r in g.rows if r.kind != 'claimed']
        assert values == sorted(values)
        assert ranks == sorted(ranks) and ranks[0] == 1 and ranks[-1] <= len(ranks)


def test_equal_values_share_a_rank():
    [group] = L.group_entries([an_entry(40.0, 'a'), an_entry(40.0, 'b'), an_entry(50.0, 'c')])
    assert [r.rank for r in group.rows] == [1, 1, 3]


def test_a_claim_has_a_place_and_no_rank():
    entries = [an_entry(40.0, 'a'), replace(an_entry(30.0, 'b'), kind='claimed'), an_entry(50.0, 'c')]
    [group] = L.group_entries(entries)
    assert [(r.rank, r.model) for r in group.rows] == [(None, 'b'), (1, 'a'), (2, 'c')]
    assert L.group_entries([entries[1]]) == []


def test_seeds_become_one_row_with_their_mean_loss():
    [group] = L.group_entries([an_entry(p, seed=i) for i, p in enumerate((40.0, 50.0, 62.5))])
    [row] = group.rows
    assert row.value == pytest.approx(50.0)
    assert (row.seeds, row.interval) == (3, 'seeds')
    assert row.low < 40 and row.high > 62.5


def test_a_seed_that_was_run_twice_counts_once():
    [group] = L.group_entries([an_entry(40.0, seed=0), an_entry(50.0, seed=0)])
    assert (group.rows[0].seeds, group.rows[0].low) == (1, None)


def test_runs_that_differ_in_more_than_their_seed_are_not_averaged():
    entries = [an_entry(40.0, seed=0, setting='a'), an_entry(50.0, seed=1, setting='b')]
    [group] = L.group_entries(entries)
    assert [r.value for r in group.rows] == [40.0, 50.0]


def test_a_run_of_other_length_or_rate_is_another_setting(tmp_path):
    a_run(tmp_path / 'a', seed=0)
    a_run(tmp_path / 'b', seed=1, summary={'epochs': 2.0})
    a_run(tmp_path / 'c', seed=2, config={'optim': {'lr': 0.1}})
    a_run(tmp_path / 'd', seed=3, config={'train': {'device': 'cuda', 'seed': 3}})
    seeds = sorted(
        r.seeds for g in L.leaderboard(tmp_path).groups if g.conditions.split == 'test' for r in g.rows if r.yours
    )
    assert seeds == [1, 1, 1, 1, 2, 2]  # in perplexity and in bits per byte


# ---- published and claimed figures


def test_every_published_figure_has_a_source_in_the_bibliography():
    keys = set(re.findall(r'<a id="(\w+)">', (ROOT / 'docs' / 'bibliography.md').read_text(encoding='utf-8')))
    assert {f['source'] for f in L.PUBLISHED} <= keys
    assert all(f['test'] or f['validation'] for f in L.PUBLISHED)


def test_published_figures_join_wikitext_2_by_words_and_nothing_else(board):
    joined = {g.conditions for g in board.groups if {r.kind for r in g.rows} >= {'measured', 'published'}}
    assert {(c.corpus, c.tokenizer, c.vocab_size, c.eos) for c in joined} == {('wikitext-2', 'word', 33_278, '<eos>')}
    assert {(c.split, c.adapts) for c in joined} == {(s, a) for s in ('validation', 'test') for a in (False, True)}
    assert all('dynamic' in r.model or 'cache' in r.model for g in board.groups if g.conditions.adapts for r in g.rows)


@pytest.mark.parametrize('changes', [dict(fingerprint='2' * 16), dict(vocab_size=30_000), dict(eos=None)])
def test_published_figures_do_not_join_a_text_that_was_changed(tmp_path, changes):
    word = dict(
        corpus='wikitext-2', tokenizer='word', vocab_size=33_278, eos='<eos>', num_unk=15_218, bits_per_byte=None
    )
    word |= dict(fingerprint=all_baselines()[-1]['test']['fingerprint'])
    a_run(tmp_path / 'r', **(word | changes))
    group = next(g for g in L.leaderboard(tmp_path).groups if any(r.yours for r in g.rows))
    assert {r.kind for r in group.rows} == {'measured'}


def test_claims_are_those_of_the_recipes(board):
    for c in L.CLAIMED:
        if c['model'] in recipe_names() and (reported := get_recipe(c['model']).reported_perplexity):
            assert c['validation'] == reported
    assert all(r.rank is None for g in board.groups for r in g.rows if r.kind == 'claimed')
    assert [c['model'] for c in board.claims if c['in_group']] == ['mu-sota', 'chinchilla-1']
    assert 'claimed, lab note 003: without a mask, so it sees its answers' in L.to_markdown(board)
    assert 'claimed, lab note 004 |' in L.to_markdown(board)


# ---- runs of the reader's own


def test_a_readers_run_appears(tmp_path):
    a_run(tmp_path / 'runs' / 'mine')
    both = L.leaderboard(tmp_path / 'runs'), L.leaderboard(tmp_path / 'runs' / 'mine')
    for found in both:
        rows = yours(found)
        assert {(r.model, r.source, r.device) for r in rows} == {('own', 'mine', 'A processor, 2 threads')}
    group = next(g for g in both[0].groups if g.unit == 'perplexity' and any(r.yours for r in g.rows))
    assert 'playground-lstm' in {r.model for r in group.rows}


def test_a_published_run_stands_on_the_board_and_only_once(tmp_path):
    a_run(tmp_path / 'runs' / 'mine')
    publish(tmp_path / 'runs' / 'mine', tmp_path / 'shelf')
    shelved = [r for g in L.leaderboard(shelf=tmp_path / 'shelf').groups for r in g.rows if r.model == 'own']
    both = [r for g in L.leaderboard(tmp_path / 'runs', tmp_path / 'shelf').groups for r in g.rows if r.model == 'own']
    assert len(shelved) == len(both) and {r.yours for r in shelved} == {False}
    assert {r.yours for r in both} == {True}


def test_unfinished_and_tiny_runs_say_so(tmp_path):
    a_run(tmp_path / 'r', summary={'tiny': True, 'finished': False})
    assert {r.model for r in yours(L.leaderboard(tmp_path))} == {'own, tiny, unfinished'}


@pytest.mark.parametrize(
    'name, text',
    [
        ('config.json', '{"recipe": "ow'),
        ('config.json', '[]'),
        ('summary.json', 'no JSON'),
        ('summary.json', '{"test": 3}'),
        ('summary.json', '{"test": {"perplexity": null}}'),
        ('summary.json', '{"test": {"perplexity": "low"}}'),
        ('summary.json', '{"test": {"perplexity": 2}}'),
    ],
)
def test_a_damaged_folder_does_not_end_the_board(tmp_path, name, text, capsys):
    a_run(tmp_path / 'good')
    a_run(tmp_path / 'bad', recipe='bad')
    (tmp_path / 'bad' / name).write_text(text)
    assert {r.model for r in yours(L.leaderboard(tmp_path))} == {'own'}
    told = capsys.readouterr().err
    assert 'left out' in told and 'bad' in told and 'Traceback' not in told


@pytest.mark.parametrize(
    'changes',
    [dict(perplexity=0.5), dict(nats_per_token=1.0), dict(split='elsewhere'), dict(num_tokens=0), dict(more=1)],
)
def test_a_measurement_that_cannot_be_is_left_out(changes, capsys):
    assert L.entry('m', measured() | changes, 'a record') is None
    assert 'a record: left out' in capsys.readouterr().err


def test_a_run_without_environment_or_results_is_no_obstacle(tmp_path):
    a_run(tmp_path / 'a')
    (tmp_path / 'a' / 'environment.json').write_text('{')
    a_run(tmp_path / 'b')
    (tmp_path / 'b' / 'summary.json').unlink()
    assert {r.device for r in yours(L.leaderboard(tmp_path))} == {'cpu'}


def test_a_folder_without_runs_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(L.LeaderboardError, match='there is no folder'):
        L.leaderboard(tmp_path / 'nothing')
    with pytest.raises(L.LeaderboardError, match='holds no run that can be read'):
        L.leaderboard(tmp_path)


# ---- formats


def test_json_and_csv_parse_back_to_the_same_rows(board):
    answer = json.loads(json.dumps(L.to_dict(board)))
    lines = list(csv.DictReader(io.StringIO(L.to_csv(board))))
    rows = [(g, r) for g in answer['groups'] for r in g['rows']]
    assert len(lines) == len(rows) == sum(len(g.rows) for g in board.groups)
    for line, (g, r) in zip(lines, rows, strict=True):
        assert (line['corpus'], line['model'], line['unit']) == (g['corpus'], r['model'], g['unit'])
        assert float(line['value']) == r['value']


def test_markdown_parses_back_to_the_same_rows(board):
    rows = [r for r in tables(L.to_markdown(board)) if r and r[0] == '–' or r and r[0].isdigit()]
    want = [r for g in board.groups for r in g.rows]
    assert [r[:2] for r in rows] == [['–' if r.rank is None else str(r.rank), r.model] for r in want]


@pytest.mark.parametrize('value', HOSTILE)
def test_a_hostile_name_is_text_in_every_format(tmp_path, value):
    a_run(tmp_path / 'r', recipe=value, corpus=value)
    found = L.leaderboard(tmp_path)
    assert {r.model for r in yours(found)} == {value}
    line = ' '.join(value.split())
    assert any(r[1:2] == [line] for r in tables(L.to_markdown(found)))
    rows = list(csv.DictReader(io.StringIO(L.to_csv(found))))
    [mine, *_] = [r for r in rows if r['yours'] == 'True']
    assert mine['model'].lstrip("'") == value
    assert not mine['model'].startswith(('=', '+', '-', '@'))
    assert json.loads(json.dumps(L.to_dict(found)))['groups']


@pytest.mark.parametrize('value', HOSTILE)
def test_a_hostile_name_is_text_on_the_site(tmp_path, value):
    a_run(tmp_path / 'r', recipe=value, corpus=value)
    groups = [g for g in L.leaderboard(tmp_path).groups if any(r.yours for r in g.rows)]
    lines = [line for line in stage._section(groups).split('\n') if not line.startswith(':::')]
    assert any(' '.join(value.split()) in row for row in tables('\n'.join(lines).replace('**', '')))


@pytest.mark.parametrize('words', [['--json'], ['--format', 'json'], ['--json', '--format', 'csv']])
def test_the_command_answers_with_one_object(capsys, words):
    assert main(['leaderboard', *words]) == 0
    out = capsys.readouterr().out
    if '--json' in words or words[-1] == 'json':
        assert list(json.loads(out)) == ['groups', 'claims']


def test_the_command_shows_your_runs_and_refuses_a_folder_without(tmp_path, capsys):
    a_run(tmp_path / 'runs' / 'mine')
    assert main(['leaderboard', '--runs', str(tmp_path / 'runs'), '--format', 'csv']) == 0
    assert sum(r['yours'] == 'True' for r in csv.DictReader(io.StringIO(capsys.readouterr().out))) >= 2
    assert main(['leaderboard', '--runs', str(tmp_path / 'runs')]) == 0
    assert 'yours: mine' in capsys.readouterr().out
    assert main(['leaderboard', '--runs', str(tmp_path / 'nothing')]) == 2
    assert capsys.readouterr().err.startswith('lmcourse: there is no folder')


# ---- figures


def test_a_figure_is_drawn_only_of_what_rows_tell(tmp_path):
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    a_run(tmp_path / 'a')
    silent = next(g for g in L.leaderboard(tmp_path).groups if any(r.yours for r in g.rows))
    with pytest.raises(L.LeaderboardError, match='no row of this group tells its joules'):
        L.plot_group(silent, 'energy_joules')
    shutil.rmtree(tmp_path / 'a')
    a_run(tmp_path / 'a', summary={'energy_joules': 1234.5})
    telling = next(g for g in L.leaderboard(tmp_path).groups if any(r.yours for r in g.rows))
    ax = L.plot_group(telling, 'energy_joules')
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['A processor, 2 threads']
    assert [t.get_text() for t in ax.texts] == ['own']
    plt.close('all')
