"""Runs an interpretation: checks all input, says what it will cost, asks the judge, adds to the results."""

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...common.devices import choose_device
from ...common.errors import UsageError
from ...common.outputs import check_file_output, check_folder_output, take_lock
from ...store import ActivationCache
from ...store.durable import make_folder
from ...store.untrusted_json import check_writes_stay
from ...train import SAE
from ...train.run_files import ANSWERS_FOLDER
from ..definitions import JUDGE_DEFINITIONS
from ..earlier_results import copy_if_judged_less
from ..results import Results, Uniqueness, read_results, write_results
from ..rows import MeasuredRows
from ..targets import Place, Target, choose_output, find_targets_of
from .activations import find_places
from .answers import AnswerFolder
from .calls import Caller
from .config import FolderEmbeddings, InterpretConfig
from .cost import CountTokens, Estimate, load_counter
from .embeddings import EndpointEncoder, SentenceEncoder
from .endpoint import Endpoint
from .interview import Interview
from .prompts import Prompts
from .questions import Questioner
from .summary import summarize
from .survey import survey_latents
from .uniqueness import Encoder, compare_all
from .window_text import Decode, WindowReader
from .windows import cut_windows

_DRY_URL = "http://127.0.0.1/v1"  # which a dry run without an endpoint never asks


@dataclass
class Interpreted:
    """What an interpretation did.

    Attributes:
        estimate: of the calls that were to be made.
        results: as written; None of a dry run.
        sample: the prompts about one latent, in words, of a dry run.
        made: calls that the server answered.
    """

    estimate: Estimate
    results: Results | None = None
    sample: str = ""
    made: int = 0
    warnings: list[str] = field(default_factory=list)


def interpret(
    targets: Sequence[Place] | Sequence[Target],
    cache: ActivationCache,
    config: InterpretConfig,
    decode: Decode,
    *,
    results: Path | None = None,
    answers: Path | None = None,
    other_cache: bool = False,
    dry_run: bool = False,
    say: Callable[[str], None] = lambda text: None,
    show_progress: bool = True,
) -> Interpreted:
    """Have a judge explain latents of SAEs, score its explanations, and add both to their results.

    Every answer is stored. Called again after an interruption, it makes the missing calls only, and writes
    the same bytes.

    Args:
        targets: SAE folders, run folders (every SAE in them), URLs of SAEs, or what
            :func:`..targets.find_targets` found.
        cache: whose held-out rows and tokens are used.
        decode: the text of token ids of the cache's model; nothing for special tokens.
        results: what ``evaluate`` has written of these SAEs; ``RUN_DIR/results.json`` when None.
        answers: the folder of stored answers; ``judge_answers`` beside the results when None.
        other_cache: allow another cache of the same model than the SAEs were trained from.
        dry_run: only estimate the cost.
        say: is told the estimate, and warnings.

    Raises:
        UsageError: bad settings or input, before any call is made; more calls or tokens than allowed.
        EndpointError: the judge fails; what it answered is stored.
    """
    results = choose_output(targets) if results is None else results
    if answers is None:
        check_writes_stay(results.parent, [ANSWERS_FOLDER], "give --answers FOLDER")
        answers = results.parent / ANSWERS_FOLDER
    found = find_targets_of(targets, cache, other_cache=other_cache)
    measured = read_results(results)
    _check_measured(found, measured, results, cache)
    check_file_output(results)
    check_folder_output(answers)
    folder = AnswerFolder(answers)
    folder.check()
    rows = _heldout_rows(cache, config)
    prompts = Prompts(None if config.prompts is None else Path(config.prompts))
    count, counted_by = load_counter(config.tokenizer)
    if not dry_run and not (config.endpoint.url and config.endpoint.model):
        raise UsageError("which judge? Give --endpoint URL, as http://127.0.0.1:8000/v1, and --model NAME")
    stop = threading.Event()
    with ExitStack() as stack:
        caller = _caller(stack, config, folder, stop, config.endpoint.url, config.endpoint.key_variable)
        device = choose_device(config.device)
        encoder = _encoder(stack, config, folder, stop, count, found)
        # Stored answers may be all that is needed; a key in the clear is warned of before it is sent.
        asked_early = folder.is_empty and not dry_run and not caller.endpoint.sends_key_in_the_clear
        if asked_early:
            _check_judge(caller, encoder, config)
        places = find_places(cache, rows.split, rows.first, rows.count)
        windows = cut_windows(cache, places, config.windows.tokens)
        questioner = Questioner(
            reader=WindowReader(cache, places, windows, decode),
            prompts=prompts,
            config=config,
            count=count,
            document_of=windows.document,
        )
        interviews = {}
        for target in found:
            sae = target.load(device)
            _check_unchanged(sae, target, measured, results)
            survey = survey_latents(
                sae, target.name, cache, rows, windows, config, show_progress=show_progress
            )
            interviews[target.name] = Interview(survey, questioner, caller)
        estimate = _estimate(list(interviews.values()), counted_by)
        done = Interpreted(estimate)
        if caller.endpoint.sends_key_in_the_clear:
            done.warnings.append(
                f"the key travels to {caller.endpoint.url} unencrypted: use https if you can"
            )
        if len(found) > 1 and config.embeddings is None:
            done.warnings.append("explanations of several SAEs are not compared: no embeddings are set")
        for text in (estimate.describe(config.price), *(f"warning: {text}" for text in done.warnings)):
            say(text)
        if dry_run:
            done.sample = _sample(next(iter(interviews.values())))
            return done
        estimate.check(config)
        make_folder(answers)
        stack.callback(take_lock(folder.lock, answers, "give another --answers").release)
        if estimate.calls and not asked_early:
            _check_judge(caller, encoder, config)
        judged = {
            name: interview.hold(name, show_progress=show_progress) for name, interview in interviews.items()
        }
        unique: list[Uniqueness] = []
        if encoder is not None:
            loaded = [(target.name, target.load(device), judged[target.name]) for target in found]
            unique = compare_all(loaded, encoder, config.seed)
        interpretations = {
            name: summarize(interview, judged[name], rows, len(windows))
            for name, interview in interviews.items()
        }
        done.made = caller.made
        if folder.damaged:
            done.warnings.append(
                f"{len(folder.damaged)} stored answers were damaged, and were asked for again"
            )
            say(f"warning: {done.warnings[-1]}")
    named = {target.name for target in found}
    measured = read_results(results)  # which may have been measured anew while the judge answered
    _check_measured(found, measured, results, cache)
    done.results = measured.model_copy(
        update={
            "definitions": measured.definitions | JUDGE_DEFINITIONS,
            "saes": [
                sae.model_copy(update={"interpretation": interpretations[sae.name]})
                if sae.name in named
                else sae
                for sae in measured.saes
            ],
            "uniqueness": unique + [one for one in measured.uniqueness if not {one.a, one.b} <= named],
        }
    )
    if lost := copy_if_judged_less(measured, done.results, results):
        done.warnings.append(lost)
        say(f"warning: {lost}")
    write_results(done.results, results)
    return done


def _check_measured(targets: Sequence[Target], measured: Results, path: Path, cache: ActivationCache) -> None:
    """The results are of these SAEs on this cache."""
    missing = [target.name for target in targets if target.name not in {sae.name for sae in measured.saes}]
    if missing:
        raise UsageError(
            f"{path} has no results of {', '.join(missing):.2000}; it has "
            f"{', '.join(sae.name for sae in measured.saes):.2000}. Measure them first with 'saecache "
            "evaluate', or name their results with --results"
        )
    if measured.cache.fingerprint != cache.fingerprint:
        raise UsageError(
            f"{path} was measured on another cache: expected fingerprint {measured.cache.fingerprint!s:.80}, "
            f"but {cache.path} has {cache.fingerprint}. Name that cache, or measure again"
        )


def _check_unchanged(sae: SAE, target: Target, measured: Results, path: Path) -> None:
    """The results are of these weights of the SAE, where they say of which."""
    (result,) = (one for one in measured.saes if one.name == target.name)
    if result.is_of_weights(sae.weights_sha256()) is False:
        raise UsageError(
            f"{target.place} has other weights than when {path} was measured: measure again with 'saecache "
            "evaluate', so that figures and explanations are of one SAE"
        )


def _heldout_rows(cache: ActivationCache, config: InterpretConfig) -> MeasuredRows:
    """The held-out rows that are searched."""
    if cache.manifest.tokens != "ids and documents":
        raise UsageError(
            f"{cache.path} holds no token ids, so there is no text to show to a judge: harvest it from "
            "text, or give CacheWriter the ids and documents"
        )
    heldout = cache.num_rows("heldout")
    if not heldout:
        raise UsageError(
            f"{cache.path} has no held-out rows, and a judge is shown unseen documents only: harvest with "
            "heldout_fraction"
        )
    return MeasuredRows(split="heldout", first=0, count=min(heldout, config.max_rows))


def _caller(
    stack: ExitStack,
    config: InterpretConfig,
    folder: AnswerFolder,
    stop: threading.Event,
    url: str | None,
    key_variable: str | None,
) -> Caller:
    endpoint = Endpoint(url or _DRY_URL, key_variable, config.endpoint, stop)
    stack.callback(endpoint.close)
    return Caller(
        endpoint,
        folder,
        concurrency=config.endpoint.concurrency,
        max_repairs=config.endpoint.max_repairs,
        stop=stop,
        stored_as=config.endpoint.stored_as,
    )


def _check_judge(caller: Caller, encoder: Encoder | None, config: InterpretConfig) -> None:
    """Make sure that the judge answers, and what embeds explanations, if that is a server."""
    assert config.endpoint.model is not None, "interpret has checked that"
    caller.endpoint.check(config.endpoint.model, look_for_model=config.endpoint.check_model)
    if isinstance(encoder, EndpointEncoder):
        encoder.caller.endpoint.check(encoder.name, look_for_model=config.endpoint.check_model)


def _encoder(
    stack: ExitStack,
    config: InterpretConfig,
    folder: AnswerFolder,
    stop: threading.Event,
    count: CountTokens,
    targets: Sequence[Target],
) -> Encoder | None:
    """What embeds explanations; None if there is nothing to compare."""
    settings = config.embeddings
    if settings is None or len(targets) < 2:
        return None
    if isinstance(settings, FolderEmbeddings):
        return SentenceEncoder(Path(settings.path), choose_device(config.device))
    own = settings.url is None
    variable = settings.key_variable or (config.endpoint.key_variable if own else None)
    caller = _caller(stack, config, folder, stop, config.endpoint.url if own else settings.url, variable)
    return EndpointEncoder(caller, settings.model, count)


def _estimate(interviews: Sequence[Interview], counted_by: str) -> Estimate:
    parts = [interview.estimate() for interview in interviews]
    names = ("explanations", "scores", "answered", "prompt_tokens", "completion_tokens")
    sums = {name: sum(getattr(part, name) for part in parts) for name in names}
    return replace(Estimate(counted_by=counted_by), **sums)


def _sample(interview: Interview) -> str:
    """One prompt of each purpose, as they are sent."""
    texts = []
    for purpose, call in interview.sample_prompts():
        messages = "\n\n".join(f"[{one['role']}]\n{one['content']}" for one in call.body["messages"])
        texts.append(f"--- {purpose}, latent {interview.survey.examples[0].latent} ---\n{messages}")
    return "\n\n".join(texts)
