"The command line as scripts use it: one JSON object on standard output, a sentence on standard error, a status."

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from lmcourse import __version__ as lmcourse_version
from lmcourse.cli import main

LM = Path(sys.executable).parent / 'lmcourse'
MEASUREMENT = [
    'perplexity',
    'nats_per_token',
    'bits_per_byte',
    'word_perplexity',
    'num_tokens',
    'num_words',
    'num_bytes',
    'vocab_size',
    'num_unk',
    'tokenizer',
    'eos',
    'corpus',
    'split',
    'fingerprint',
    'context_length',
    'stride',
    'state_carried',
    'eval_batch_size',
    'accuracy',
    'ci95',
]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture
def lm(tmp_path, cache):
    "Run a command in an empty folder, with no network and no data but the embedded."

    def go(*words, env=None, status=0):
        full = (
            {k: v for k, v in os.environ.items() if k != 'LMCOURSE_DATA'}
            | dict(LMCOURSE_CACHE=str(cache), HF_HUB_OFFLINE='1', OMP_NUM_THREADS='1')
            | (env or {})
        )
        r = subprocess.run([LM, *map(str, words)], cwd=tmp_path, env=full, capture_output=True, text=True, timeout=240)
        assert r.returncode == status, f'status {r.returncode}\n{r.stdout}\n{r.stderr}'
        return r

    return go


def sentence(r):
    "What a refused request printed: one sentence on standard error, nothing on standard output."
    assert r.stdout == '' and 'Traceback' not in r.stderr, r.stderr
    assert len(r.stderr.strip().splitlines()) == 1 and r.stderr.startswith('lmcourse: '), r.stderr
    return r.stderr


@pytest.fixture(scope='module')
def made(tmp_path_factory, cache):
    "A run of the small version, to be copied by the tests that need one."
    d = tmp_path_factory.mktemp('made')
    r = subprocess.run(
        [LM, 'run', 'lstm-a', '--tiny', '--corpus', 'markov', '--out', d / 'run', '--json'],
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | dict(LMCOURSE_CACHE=str(cache), OMP_NUM_THREADS='1'),
    )
    assert r.returncode == 0, r.stderr
    return d / 'run', r


def test_list_names_the_recipes(lm):
    recipes = {r['recipe']: r for r in json.loads(lm('list', '--json').stdout)['recipes']}
    assert set(recipes['lstm-a']) == {'recipe', 'num_parameters', 'reported_perplexity', 'summary'}
    assert recipes['lstm-a']['num_parameters'] == 18_124_286 and recipes['lstm-a']['reported_perplexity'] == 152
    assert {'gru-a', 'lstm-b', 'gru-b'} <= set(recipes)


def test_list_shows_each_recipe_in_a_sentence(lm):
    "Whole, and a name in code between plain backticks."
    [row] = [line for line in lm('list').stdout.splitlines() if line.startswith('| playground-transformer |')]
    assert row.endswith(
        '| `chinchilla-1-tuned` in four passes instead of ten: a Transformer small enough to travel with the course. |'
    )


def test_baseline_answers_with_a_passport(lm):
    r = json.loads(lm('baseline', 'markov', '--order', 3, '--json').stdout)
    assert list(r['validation']) == list(r['test']) == MEASUREMENT
    assert (
        4.7 < r['validation']['perplexity'] < 5
        and r['validation']['bits_per_byte'] is None
        and r['validation']['context_length'] == 2
    )
    assert r['seconds'] > 0 and r['peak_memory'] > 1e7


def test_a_run_is_one_object_and_silence(made):
    path, r = made
    s = json.loads(r.stdout)
    assert (
        r.stderr == '' and s['run'] == str(path) and s['steps'] == 50 and s['finished'] and s['stopped'] == 'max_steps'
    )
    assert list(s['validation']) == list(s['test']) == MEASUREMENT
    assert (
        s['validation']['state_carried']
        and s['validation']['eval_batch_size'] == 10
        and s['validation']['ci95'][0] < s['validation']['perplexity']
    )
    noted = s['state_reset_eval']['validation']
    assert (
        not noted['state_carried']
        and noted['context_length'] == noted['stride'] == 35
        and noted['num_tokens'] == s['validation']['num_tokens']
    )
    assert {p.name for p in path.iterdir() if p.name not in ('.lock', '.writer')} == {
        'config.json',
        'environment.json',
        'tokenizer.json',
        'metrics.jsonl',
        'summary.json',
        'best.safetensors',
        'last.safetensors',
        'state.safetensors',
    }
    assert json.loads((path / 'summary.json').read_text()) == {k: v for k, v in s.items() if k != 'run'}


def test_eval_compare_publish_results(lm, made, tmp_path):
    path, r = made
    m = json.loads(lm('eval', path, '--json').stdout)
    assert list(m) == MEASUREMENT and m['perplexity'] == pytest.approx(json.loads(r.stdout)['test']['perplexity'])
    assert json.loads(lm('compare', path, path, '--json').stdout)['validation']['ratio'] == 1
    found = json.loads(lm('results', '--runs', path.parent, '--json').stdout)['results']
    assert [f for f in found if f['tiny']][0]['recipe'] == 'lstm-a'


def test_everything_answers_people_too(lm, made):
    assert 'perplexity' in lm('eval', made[0]).stdout and '18,124,286' in lm('list').stdout
    assert 'validation: perplexity' in lm('baseline', 'markov', '--order', 0).stdout


def test_text_of_ones_own(lm, tmp_path):
    rows = [f'the cat number {i} sat on the mat number {i % 7} and was happy .\n' for i in range(600)]
    (tmp_path / 'mine.txt').write_text(''.join(rows))
    assert json.loads(lm('baseline', 'mine.txt', '--order', 2, '--json').stdout)['validation']['corpus'] == 'mine.txt'
    s = json.loads(lm('run', 'gru-b', '--tiny', '--corpus', 'mine.txt', '--max-steps', 3, '--json').stdout)
    assert s['validation']['corpus'] == 'mine.txt' and s['run'].startswith('runs')


@pytest.mark.parametrize(
    'words, told',
    [
        ('run lstm-z', "did you mean 'lstm-"),
        ('run lstm-a --tiny --optim.lrr 1', "did you mean 'lr'"),
        ('run lstm-a --tiny --optim.lr fast', 'wants a finite number'),
        ('run lstm-a --tiny --train.epochs 1.5', 'whole number'),
        ('run lstm-a --tiny --optimiser.lr 1', 'no section'),
        ('run lstm-a --tiny --model.cell rnn', 'model.cell is'),
        ('run lstm-a --tiny --device cuda:9', 'no device'),
        ('run lstm-a --tiny --corpus gone.txt', 'no file or folder'),
        ('run lstm-a --tiny --corpus empty.txt', 'empty'),
        ('run lstm-a --tiny --corpus notes', 'not a corpus'),
        ('run lstm-a --tiny --corpus latin.txt', 'not UTF-8'),
        ('run lstm-a --tiny --corpus short.txt', 'too short'),
        ('run lstm-a --tiny --corpus markov --out blocked/run', 'blocked'),
        ('run lstm-a --resume', 'no run of'),
        ('eval notes', 'holds no run'),
        ('publish notes', 'holds no run'),
        ('baseline markov --tokenizer bpe:ten', 'bpe'),
        ('baseline markov --tokenizer words', 'is no tokenizer'),
        ('baseline wikitext-2', 'LMCOURSE_DATA'),
        ('run lstm-a --tiny --optim.betas 2,3', 'optim.betas'),
        ('run lstm-a --tiny --device meta', 'no numbers'),
        ('results --runs nowhere', 'no folder'),
        ('baseline markov --order 99', '--order'),
    ],
)
def test_requests_that_cannot_be_met(lm, tmp_path, words, told):
    (tmp_path / 'empty.txt').write_text('')
    (tmp_path / 'short.txt').write_text('one line\n')
    (tmp_path / 'latin.txt').write_bytes('schöne Grüße\n'.encode('latin-1') * 50)
    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'a.md').write_text('nothing here')
    (tmp_path / 'blocked').write_text('a file, no folder')
    before = sorted(p.name for p in tmp_path.iterdir())
    assert told in sentence(lm(*words.split(), status=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == before, 'a refused request leaves nothing behind'


@pytest.mark.parametrize(
    'words',
    [
        '',
        'nonsense',
        'baseline',
        'run lstm-a stray',
        'run lstm-a --optim.lr',
        'list --order 3',
        'eval x --split dev',
        'baseline markov --order five',
    ],
)
def test_words_that_are_no_command(lm, words):
    assert 'usage: lmcourse' in lm(*words.split(), status=2).stderr


def test_a_text_shorter_than_a_batch(lm, tmp_path):
    (tmp_path / 'tiny.txt').write_text('a b c\n' * 24)
    assert 'tokens are too few' in sentence(
        lm('run', 'lstm-b', '--corpus', 'tiny.txt', '--data.batching', 'stateful', '--data.batch_size', 500, status=2)
    )


def test_a_loss_that_is_no_number_any_more(lm, tmp_path):
    r = lm(
        'run',
        'lstm-a',
        '--tiny',
        '--corpus',
        'markov',
        '--optim.lr',
        '1e36',
        '--optim.max_grad_norm',
        0,
        '--out',
        'run',
        status=1,
    )
    assert 'stopped being a number' in sentence(r) and '--optim.lr' in r.stderr


def test_a_checkpoint_of_another_shape(lm, made, tmp_path):
    shutil.copytree(made[0], tmp_path / 'run')
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    config['model']['hidden_size'] = 16
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
    assert 'does not fit the model' in sentence(lm('eval', 'run', status=2))
    assert 'does not fit the model' in sentence(lm('run', 'lstm-a', '--resume', 'run', status=2))


def test_a_broken_checkpoint(lm, made, tmp_path):
    shutil.copytree(made[0], tmp_path / 'run')
    for name in ('best', 'state'):
        p = tmp_path / 'run' / f'{name}.safetensors'
        p.write_bytes(p.read_bytes()[:500])
    assert 'damaged' in sentence(lm('eval', 'run', status=2)) and 'damaged' in sentence(
        lm('run', 'lstm-a', '--resume', 'run', status=2)
    )


def test_a_run_is_not_written_over(lm, made):
    before = (made[0] / 'summary.json').read_bytes()
    assert 'already holds a run' in sentence(
        lm('run', 'lstm-a', '--tiny', '--corpus', 'markov', '--out', made[0], status=2)
    )
    assert (made[0] / 'summary.json').read_bytes() == before


def test_interrupted_and_taken_up_again(lm, tmp_path, cache):
    "Ctrl-C in the middle: status 130, everything saved; and the curve goes on as if nothing had happened."
    words = [
        'run',
        'lstm-a',
        '--tiny',
        '--corpus',
        'markov',
        '--max-steps',
        '4000',
        '--train.log_every',
        '1',
        '--data.batching',
        'stateful',
        '--out',
        'run',
        '--json',
    ]
    p = subprocess.Popen(
        [LM, *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(LMCOURSE_CACHE=str(cache), OMP_NUM_THREADS='1'),
    )
    curve = tmp_path / 'run' / 'metrics.jsonl'
    for _ in range(1200):
        if curve.exists() and len(curve.read_text().splitlines()) > 5:
            break
        assert p.poll() is None, p.communicate()
        time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=60)
    assert p.returncode == 130 and '--resume' in err
    done = json.loads(out)['steps']
    assert 5 < done < 4000 and json.loads(out)['stopped'] == 'interrupted'
    s = json.loads(lm('run', 'lstm-a', '--resume', 'run', '--max-steps', done + 5, '--json').stdout)
    assert s['steps'] == done + 5 and s['stopped'] == 'max_steps' and s['finished']
    straight = json.loads(
        lm(
            'run',
            'lstm-a',
            '--tiny',
            '--corpus',
            'markov',
            '--max-steps',
            done + 5,
            '--data.batching',
            'stateful',
            '--train.log_every',
            '1',
            '--out',
            'straight',
            '--json',
        ).stdout
    )
    assert s['test']['perplexity'] == straight['test']['perplexity']


def test_interrupted_while_modules_are_imported():
    "A Ctrl-C in the first second is a sentence too."
    code = (
        'import builtins, os, signal, sys\nreal = builtins.__import__\n'
        'def slow(name, *rest):\n'
        "    if name == 'torch': os.kill(os.getpid(), signal.SIGINT)\n"
        '    return real(name, *rest)\n'
        'builtins.__import__ = slow\nfrom lmcourse.__main__ import main\nsys.exit(main())'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, '', 'lmcourse: interrupted\n')


def test_killed_and_taken_up_again(lm, made, tmp_path):
    """A kill leaves a curve with half a line and rows past the checkpoint: they are dropped, and the run goes on from
    where it was saved."""
    shutil.copytree(made[0], tmp_path / 'run')
    with open(tmp_path / 'run' / 'metrics.jsonl', 'a') as f:
        f.write('{"step": 57, "train_nats": 1.0}\n{"step": 5')
    s = json.loads(lm('run', 'lstm-a', '--resume', 'run', '--max-steps', 55, '--json').stdout)
    steps = [json.loads(line)['step'] for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
    assert s['steps'] == 55 and 57 not in steps and steps[-1] == 55


@pytest.mark.parametrize('words', ['--seed 7', '--optim.lr 1', '--corpus stdlib', '--tiny', '--train.precision bf16'])
def test_a_resumed_run_is_the_run_that_was_begun(lm, made, tmp_path, words):
    shutil.copytree(made[0], tmp_path / 'run')
    before = (tmp_path / 'run' / 'metrics.jsonl').read_bytes()
    assert 'start a new one' in sentence(lm('run', 'lstm-a', '--resume', 'run', *words.split(), status=2))
    assert (
        'not of' in sentence(lm('run', 'gru-a', '--resume', 'run', status=2))
        and (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == before
    )


def test_the_ladder_command(lm, tmp_path):
    r = json.loads(lm('ladder', 'markov', '--max-steps', 3, '--out', 'ladder', '--json').stdout)
    assert [x['rung'] for x in r['rungs']] == [
        'uniform',
        'unigram',
        'bigram',
        'Kneser-Ney 5-gram',
        'LSTM',
        'GRU',
        'Transformer',
    ]
    assert (tmp_path / r['figure']).read_bytes()[:4] == b'\x89PNG'


def test_generate(lm, made):
    """One object; or the text as it grows, and nothing else on standard output. The same words, the same text, in any
    process."""
    path, words = made[0], ['nevu kafo', '--tokens', 30, '--device', 'cpu']
    r = lm('generate', path, *words, '--json')
    a = json.loads(r.stdout)
    assert (
        list(a) == ['text', 'num_tokens', 'perplexity']
        and r.stderr == ''
        and a['num_tokens'] == 30
        and a['perplexity'] > 1
        and a['text'].startswith('nevu kafo ')
    )
    r = lm('generate', path, *words)
    assert r.stdout == a['text'] + '\n' and r.stderr == ''
    g, z, cold, other = (
        json.loads(lm('generate', path, *words, *more, '--json').stdout)
        for more in (
            ['--greedy'],
            ['--temperature', 0, '--seed', 3],
            ['--top-k', 1, '--top-p', 0.9, '--min-p', 0.1],
            ['--seed', 1],
        )
    )
    assert g == z == cold and other['text'] != a['text'] and g['perplexity'] < a['perplexity']
    assert lm('generate', path, '--tokens', 4, '--penalty', 1.2).stdout.count(' ') <= 4


def test_generate_tells_what_it_does_not_know(lm, made):
    r = lm('generate', made[0], 'the nevu cat', '--tokens', 3, '--json')
    assert r.stderr == "lmcourse: not in the vocabulary of this run, and read as <unk>: 'the', 'cat'\n" and json.loads(
        r.stdout
    )['text'].startswith('the nevu cat ')


@pytest.mark.parametrize(
    'words, told',
    [
        ('--temperature -1', '0 or more'),
        ('--top-k 0', 'at least one'),
        ('--top-p 0', '(0, 1]'),
        ('--top-p 1.1', '(0, 1]'),
        ('--min-p 2', '(0, 1]'),
        ('--penalty 0', 'above 0'),
        ('--tokens 0', 'at least one token'),
        ('--seed -4', 'from 0 on'),
        ('--device cuda:9', 'no device'),
    ],
)
def test_texts_that_cannot_be_written(lm, made, words, told):
    assert told in sentence(lm('generate', made[0], 'nevu', *words.split(), status=2))


def test_generate_wants_a_run(lm, tmp_path):
    assert (
        'holds no run' in sentence(lm('generate', 'nowhere', 'a', status=2))
        and 'usage: lmcourse' in lm('generate', status=2).stderr
        and 'invalid int' in lm('generate', 'x', '--top-k', 'few', status=2).stderr
    )


def lmcourse(*words, **kwargs):
    "The command in a process of its own, as a shell starts it."
    return subprocess.run([sys.executable, '-m', 'lmcourse', *words], capture_output=True, text=True, **kwargs)


def test_bits_per_byte_are_null_where_words_are_unknown():
    done = lmcourse('baseline', 'stdlib', '--json', '--order', '1')
    answer = json.loads(done.stdout)
    assert answer['validation']['num_unk'] > 0
    assert answer['validation']['bits_per_byte'] is None
    assert 'bits per byte' not in lmcourse('baseline', 'stdlib', '--order', '1').stdout


def test_version_and_module():
    assert lmcourse('--version').stdout.split() == ['lmcourse', lmcourse_version]


@pytest.mark.parametrize('words', ['list', 'results --json', '--help', 'list --json'])
def test_a_reader_that_has_had_enough(words):
    done = subprocess.run(
        f'{sys.executable} -m lmcourse {words} | head -c 1', shell=True, capture_output=True, text=True
    )
    assert 'Traceback' not in done.stderr and 'Exception' not in done.stderr


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full here')
@pytest.mark.parametrize('words', ['list', 'results --json'])
def test_an_answer_that_cannot_be_written(words):
    done = subprocess.run(
        f'{sys.executable} -m lmcourse {words} > /dev/full', shell=True, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert 'could not be written' in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize('codec', ['cp1252', 'cp437', 'ascii'])
def test_a_terminal_that_lacks_a_letter(codec):
    done = subprocess.run(
        [sys.executable, '-m', 'lmcourse', 'results'], capture_output=True, env=os.environ | {'PYTHONIOENCODING': codec}
    )
    assert done.returncode == 0 and b'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'env, says',
    [
        (dict(RANK='0', WORLD_SIZE='2'), 'start with torchrun'),
        (dict(RANK='x', WORLD_SIZE='2'), 'no rank among processes'),
        (dict(RANK='3', WORLD_SIZE='2'), 'no rank among processes'),
    ],
)
def test_distributed_processes_without_torchrun(env, says, tmp_path):
    clean = {k: v for k, v in os.environ.items() if k != 'MASTER_ADDR'}
    done = lmcourse('run', 'lstm-a', '--tiny', '--out', str(tmp_path / 'r'), env=clean | env)
    assert done.returncode == 2 and says in done.stderr and 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'words',
    [
        ['--section', '5'],
        ['--section.field', '5'],
        ['--seed', '99999999999999999999'],
        ['--model.hidden_size', '1e308'],
        ['--data.seq_len', '1e308'],
        ['--optim.max_grad_norm', 'inf'],
        ['--lr', '3'],
    ],
)
def test_requests_that_mean_nothing(words, tmp_path):
    with pytest.raises(SystemExit) if words[0] in ('--section', '--section.field', '--lr') else nullcontext():
        assert main(['run', 'lstm-a', '--tiny', '--out', str(tmp_path / 'r'), *words]) == 2
    assert not (tmp_path / 'r').exists()


def test_a_ladder_that_is_stopped_keeps_its_rungs_and_goes_on(tmp_path, monkeypatch, capsys):
    import lmcourse.experiments.ladder as L

    real, stops = L.train, [1]

    def stopped(recipe, folder, show):
        if stops.pop() if stops else 0:
            raise KeyboardInterrupt
        return real(recipe, folder, show)

    monkeypatch.setattr(L, 'train', stopped)
    assert main(['ladder', 'markov', '--out', str(tmp_path / 'l'), '--max-steps', '3']) == 130
    assert [r['rung'] for r in json.loads((tmp_path / 'l' / 'ladder.json').read_text())] == [
        'uniform',
        'unigram',
        'bigram',
        'Kneser-Ney 5-gram',
    ]
    assert f'lmcourse ladder markov --out {tmp_path / "l"}' in capsys.readouterr().err
    assert main(['ladder', 'markov', '--out', str(tmp_path / 'l'), '--max-steps', '3']) == 0
    assert len(json.loads((tmp_path / 'l' / 'ladder.json').read_text())) == 7


def test_a_ladder_of_pieces_trains_with_the_exact_softmax_and_is_taken_up_with_its_tokenizer(
    tmp_path, monkeypatch, capsys
):
    "The ids of a byte-pair encoding are not sorted by frequency, so the sampled softmax is not for them."
    import lmcourse.experiments.ladder as L

    for name in ('train', 'valid', 'test'):
        (tmp_path / f'{name}.txt').write_text('the cat sat on the mat and the dog sat on the log\n' * 40)
    words = ['ladder', str(tmp_path), '--tokenizer', 'bpe:270', '--out', str(tmp_path / 'l'), '--max-steps', '2']
    with monkeypatch.context() as m:
        m.setattr(L, 'train', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words) == 130
    assert f'lmcourse ladder {tmp_path} --tokenizer bpe:270 --out' in capsys.readouterr().err
    assert main(words) == 0
    made = sorted(p.parent.name for p in (tmp_path / 'l').glob('*/summary.json'))
    assert made == ['ladder-gru', 'ladder-lstm', 'ladder-transformer']


def test_a_ladder_takes_any_architecture(tmp_path):
    from lmcourse.experiments.ladder import trained_rungs

    (row,) = trained_rungs('markov', 'word', ('transformer-small',), tmp_path, False, max_steps=2)
    assert row['rung'] == 'Transformer'


def test_the_help_of_run_lists_every_field_of_the_recipe_before_it(capsys):
    "With its value and with what it is; without a recipe, what all recipes have; an unknown one is one sentence."
    with pytest.raises(SystemExit) as done:
        main(['run', 'gru-b', '--help'])
    shown = capsys.readouterr().out
    assert done.value.code == 0
    assert re.search(r'--model\.hidden_size +128 +width of the hidden state', shown)
    assert re.search(r'--data\.seq_len +60 +tokens in a row', shown)
    assert '--train.precision' in shown
    with pytest.raises(SystemExit):
        main(['run', '--help'])
    shown = capsys.readouterr().out
    assert '--optim.lr' in shown
    assert '--model.' not in shown
    with pytest.raises(SystemExit) as done:
        main(['run', 'gru-bb', '--help'])
    assert done.value.code == 2
    assert "no recipe 'gru-bb'" in capsys.readouterr().err


def test_one_part_of_the_benchmarks_is_measured_alone(tmp_path, capsys):
    "The answer and the file hold that part and no other; a file that was there is replaced."
    out = tmp_path / 'kept.json'
    out.write_text('{"environment": {}, "quick": true, "tokens": {}}')
    assert main(['bench', '--quick', '--only', 'ngram', '--out', str(out), '--json']) == 0
    answer = json.loads(capsys.readouterr().out)
    assert list(answer) == ['environment', 'quick', 'ngram']
    assert list(json.loads(out.read_text())) == list(answer)


def test_parts_of_the_benchmarks_are_listed_where_one_is_unknown_and_in_the_help(tmp_path, capsys):
    "Nothing is measured, and a file that was there stays as it was."
    out = tmp_path / 'kept.json'
    out.write_text('{}')
    parts = 'fused_loss, native, step, floors, usual, growth, ngram, tokens'
    assert main(['bench', '--quick', '--only', 'ngram', 'haste', '--out', str(out)]) == 2
    assert capsys.readouterr() == ('', f'lmcourse: there is no benchmark haste: there are {parts}\n')
    assert out.read_text() == '{}'
    with pytest.raises(SystemExit):
        main(['bench', '--help'])
    shown = ' '.join(capsys.readouterr().out.split())
    assert parts in shown
    assert 'one that is there is replaced' in shown
