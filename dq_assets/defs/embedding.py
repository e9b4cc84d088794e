"""Vectors for what has none yet, and the choice of the encoder where `auto` is asked for.

No Dagster and no algorithm here, as in `stages/`. What is compared for a choice is embedded as everything else is: the vectors stay, so
the chosen network embeds no image twice, and a comparison that was killed goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl

from dq_assets.audit import encoder, encoder_choice
from dq_assets.audit.encoder_choice import AUTO
from dq_assets.defs.session import Session
from dq_assets.settings import Encoder, UserError
from dq_assets.sources.addresses import shown_uri
from dq_assets.sources.reading import Reader
from dq_assets.store import fitted
from dq_assets.store.contents import borrow_vectors, embedded_content, read_vectors
from dq_assets.store.tables import append


def embed(session: Session, options: Encoder, contents: pl.DataFrame, network: encoder.Encoder | None = None) -> dict[str, Any]:
    """Embed those of the contents that have no vector yet; one commit per block, so a killed run goes on where it stopped.

    contents: uri, content_sha256 (unique), bytes. network: of the options, if it is loaded already. Returns metrics.
    Raises UserError for files that changed or vanished since they were scanned, after everything else is embedded.
    """
    name, identity = session.dataset.name, encoder.encoder_id(options)
    wanted = set(contents["content_sha256"]) - embedded_content(session.lake, name, identity)
    n_borrowed = borrow_vectors(session.lake, name, identity, wanted)
    have = embedded_content(session.lake, name, identity)
    todo = contents.filter(~pl.col("content_sha256").is_in(list(have)))
    metrics: dict[str, Any] = {"embedded now": len(todo), "borrowed from other datasets": n_borrowed}
    if todo.is_empty():
        return metrics
    network = network or _load(session, options)
    metrics["engine"] = str(network.engine)
    session.report.say(f"Embedding with {network.engine}.")
    failures: list[str] = []
    with session.report.bar("Embedding", len(todo)) as advance:
        for rows, failed in _embedded_blocks(session, network, todo, advance):
            append(session.lake, name, "embeddings", rows.with_columns(encoder=pl.lit(identity)))
            failures += failed
    if failures:
        raise UserError(f"{len(failures)} files changed or vanished while they were audited, such as {failures[0]}. Run the audit again.")
    return metrics


def _load(session: Session, options: Encoder) -> encoder.Encoder:
    """The network; what auto chose is never fetched."""
    return encoder.Encoder(options, cache=session.home.cache, say=session.report.say, fetch=session.settings.encoder.model != AUTO)


def _embedded_blocks(
    session: Session, network: encoder.Encoder, todo: pl.DataFrame, advance: Callable[[int], None]
) -> Iterator[tuple[pl.DataFrame, list[str]]]:
    """(content_sha256 and vector, failures) of about encoder.block_size images at a time."""
    options, images = session.settings.encoder, session.settings.images
    uris, shas = todo["uri"].to_list(), todo["content_sha256"]
    parts: list[pl.DataFrame] = []
    failed: list[str] = []
    with Reader.of(session.dataset).ahead(uris, todo["bytes"].to_list()) as read:
        batches = encoder.embed_files(
            uris,
            network,
            batch_size=options.batch_size,
            threads=images.threads,
            max_pixels=images.max_pixels,
            memory_mb=images.memory_mb,
            content_sha256=shas.to_list(),
            read=read,
        )
        for batch in batches:
            vectors = pl.Series("vector", batch.vectors, dtype=pl.Array(pl.Float32, batch.vectors.shape[1])).cast(pl.List(pl.Float32))
            parts.append(pl.DataFrame({"content_sha256": shas.gather(batch.positions), "vector": vectors}))
            failed += [f"{shown_uri(uris[position])} ({reason})" for position, reason in batch.failures.items()]
            advance(len(batch.positions) + len(batch.failures))
            if sum(map(len, parts)) >= options.block_size:
                yield pl.concat(parts), failed
                parts, failed = [], []
    if parts or failed:
        yield pl.concat(parts) if parts else pl.DataFrame(schema={"content_sha256": pl.String, "vector": pl.List(pl.Float32)}), failed


def choose_encoder(session: Session) -> Encoder:
    """Compare the candidates on a sample of the labelled images, store the choice, say why, and return the encoder's settings with it.

    Raises UserError as `audit.encoder_choice.candidates` does, and if no candidate can be loaded.
    """
    options = session.settings.encoder
    models, left_out = encoder_choice.candidates(options.candidates)
    rows = _compare(session, models, left_out)
    fitted.keep_choice(session.lake, session.dataset.name, session.encoder_question, rows)
    for model, why in rows.select("model", "why").iter_rows():
        session.report.say(f"{model} is {'' if model == rows['model'][0] else 'not '}chosen as the encoder: {why}.")
    return dataclasses.replace(options, model=rows["model"][0])


def _compare(session: Session, models: list[str], left_out: dict[str, str]) -> pl.DataFrame:
    """The rows of the choice, see `audit.encoder_choice`."""
    if len(models) == 1:
        return encoder_choice.without_comparison(models[0], "the only candidate on this machine", left_out)
    # The hashes come with the manifest, from the same decode.
    hashes = session.table("image_properties", "image_id", "phash")
    images = session.fine("uri", "content_sha256", "bytes", "given_label", "group", "pixel_hash").join(hashes, on="image_id")
    drawn = encoder_choice.sample(images.sort("image_id"), session.settings.folds)
    if drawn.is_empty():
        why = f"there are no two classes of {encoder_choice.LEAST_PER_CLASS} labelled images to compare the candidates on"
        model = encoder_choice.default_of(models)
        return encoder_choice.without_comparison(model, why, left_out | {other: why for other in models if other != model})
    session.report.say(f"Comparing {len(models)} encoders on {len(drawn):,} images of {drawn['given_label'].n_unique()} classes.")
    trials: list[encoder_choice.Trial] = []
    for model in models:
        found = _trial(session, model, drawn, min((one.ms_per_image for one in trials), default=np.inf))
        if isinstance(found, str):
            left_out = left_out | {model: found}
        else:
            trials.append(found)
    if not trials:
        raise UserError(f"No encoder can be used: {'; '.join(left_out.values())}. Name another with --set encoder.model=NAME.")
    return encoder_choice.choose(trials, drawn, left_out)


def _trial(session: Session, model: str, drawn: pl.DataFrame, fastest: float) -> encoder_choice.Trial | str:
    """One candidate on the sample, or why it is left out. fastest: milliseconds an image of the fastest so far."""
    options = dataclasses.replace(session.settings.encoder, model=model)
    try:
        network = _load(session, options)
    except UserError as error:
        return str(error).rstrip(".")
    ms = encoder_choice.ms_per_image(network)
    if ms > encoder_choice.SLOWEST * fastest:
        return f"it takes {ms / fastest:.0f} times as long an image as the fastest, more than {encoder_choice.SLOWEST:g} times"
    session.report.say(f"{model} takes {ms:.1f} ms an image.")
    embed(session, options, drawn.select("uri", "content_sha256", "bytes"), network)
    vectors = read_vectors(session.lake, session.dataset.name, encoder.encoder_id(options), drawn["content_sha256"].to_list())
    return encoder_choice.trial(model, vectors, drawn, ms)
