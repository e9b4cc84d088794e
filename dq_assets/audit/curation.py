"""What to do with each image, from the findings and the policy. One pure decision per image, with its reason.

What a policy never does: relabel or drop anything of the test split but copies; that is a person's decision.
"""

from __future__ import annotations

import polars as pl

from dq_assets import settings as st

_RANK = {"test": 3, "validation": 2, "train": 1, "unused": 0}
"""Of copies over several splits the one in the highest split stays. No split counts as train: it is trained on."""


def curate(
    manifest: pl.DataFrame, label_issues: pl.DataFrame, outliers: pl.DataFrame, near_dups: pl.DataFrame, policy: st.Curation
) -> pl.DataFrame:
    """The table curated_dataset: every row of the manifest once, by image_id. The first rule that applies decides.

    A cross-split group keeps its test, then validation, member; its copies in other splits are dropped. An outlier is never
    relabelled: the model's opinion of a picture that is like no other is worth little.
    """
    given = ("image_id", "given_label", "split", "status", "content_sha256", "pixel_hash")
    issues = label_issues.select("image_id", "is_label_issue", "suggested_label", "p_suggested", "p_given", issue_kind="kind")
    copies = near_dups.select("image_id", "group_id", "is_keeper", "is_wrong_label", "resolved_label", "confidence")
    facts = (
        manifest.select(*given, status_reason="reason")
        .join(issues, on="image_id", how="left")
        .join(outliers.select("image_id", "is_outlier_issue", "outlier_score"), on="image_id", how="left")
        .join(copies, on="image_id", how="left")
        .with_columns(rank=pl.col("split").fill_null("train").replace_strict(_RANK, return_dtype=pl.Int8))
    )
    facts = _with_kept_copies(facts).sort("image_id")
    action, reason, label = pl.lit("keep"), pl.lit("no finding"), pl.col("given_label")
    for rule_applies, then_action, why, final in reversed(_rules(policy)):
        applies = rule_applies.fill_null(False)
        action = pl.when(applies).then(pl.lit(then_action)).otherwise(action)
        reason = pl.when(applies).then(why).otherwise(reason)
        label = pl.when(applies).then(final).otherwise(label)
    return facts.select("image_id", final_label=label, action=action, reason=reason, source=pl.lit("policy"))


def _with_kept_copies(facts: pl.DataFrame) -> pl.DataFrame:
    """Adds, null outside of groups: keeper, the image that its group keeps, with keeper_rank and keeper_split; twin, the one
    that is kept of those with equal pixels; and same_bytes, whether the twin's file is the same.

    A group's members need not all be copies of its keeper: of two equal files that are near-duplicates of a third, the third
    may be the keeper, and one of the two is still a picture of its own.
    """
    members = facts.filter(pl.col("group_id").is_not_null()).sort(
        "rank", "is_keeper", "is_wrong_label", "image_id", descending=[True, True, False, False]
    )
    keepers = members.unique("group_id", keep="first", maintain_order=True)
    twins = members.filter(pl.col("pixel_hash").is_not_null()).unique(["group_id", "pixel_hash"], keep="first", maintain_order=True)
    keeper_split = pl.col("split").fill_null("train")
    return (
        facts.join(keepers.select("group_id", keeper="image_id", keeper_rank="rank", keeper_split=keeper_split), on="group_id", how="left")
        .join(
            twins.select("group_id", "pixel_hash", twin="image_id", twin_bytes="content_sha256"), on=["group_id", "pixel_hash"], how="left"
        )
        .with_columns(same_bytes=pl.col("content_sha256") == pl.col("twin_bytes"))
    )


Rule = tuple[pl.Expr, str, pl.Expr, pl.Expr]
"""Whether it applies, the action, the reason and the final label; all but the action are expressions over one image's facts."""


def _rules(policy: st.Curation) -> list[Rule]:
    given = pl.col("given_label")
    in_test = pl.col("split").eq_missing("test")
    outlier = pl.col("is_outlier_issue").fill_null(False)
    label_may_change = ~in_test & ~outlier
    conflict, issue = pl.col("is_wrong_label"), pl.col("is_label_issue")
    sure = issue & (pl.col("p_suggested") > policy.relabel_above) & (pl.col("issue_kind") == "mislabeled")
    relabels = policy.label_issues == "relabel"
    p_suggested, p_given = (pl.col(p).round(3) for p in ("p_suggested", "p_given"))
    suggestion = pl.format("{} (p {}) instead of {} (p {})", "suggested_label", p_suggested, "given_label", p_given)
    off_center = pl.format("outlier (score {})", pl.col("outlier_score").round(3))
    unreadable = pl.format("{}: {}", "status", pl.col("status_reason").fill_null("no reason given"))
    return [
        (pl.col("status") != "ok", "drop", unreadable, given),
        *_copy_rules(policy),
        (given.is_null(), "review", pl.lit("has no label"), given),
        _unless_keep(outlier & ~in_test, policy.outliers, off_center),
        (outlier & pl.lit(policy.outliers != "keep"), "review", off_center, given),
        (
            conflict & label_may_change & (pl.col("confidence") > policy.relabel_above),
            policy.label_issues,
            pl.format("its copies say {}", "resolved_label"),
            pl.col("resolved_label") if relabels else given,
        ),
        (conflict, "review", pl.format("label conflict with its copies; {} is more likely", "resolved_label"), given),
        (
            sure & label_may_change,
            policy.label_issues,
            pl.format("label issue: {}", suggestion),
            pl.col("suggested_label") if relabels else given,
        ),
        (issue, "review", pl.format("label issue, to be looked at: {}", suggestion), given),
    ]


def _copy_rules(policy: st.Curation) -> list[Rule]:
    """Copies: first those that leak over splits, whatever the policy, then equal pixels, then near-duplicates."""
    in_group = pl.col("group_id").is_not_null()
    is_twin = pl.col("twin").ne(pl.col("image_id")).fill_null(False)
    leaks = in_group & (pl.col("rank") > 0) & (pl.col("rank") < pl.col("keeper_rank"))
    tie = pl.when("same_bytes").then(pl.lit("exact")).otherwise(pl.lit("pixel"))
    tie_to_keeper = pl.when(pl.col("twin") == pl.col("keeper")).then(tie).otherwise(pl.lit("near"))
    return [
        (
            leaks,
            "drop",
            pl.format("copy of image {} ({}), which is in {}: leaks across splits", "keeper", tie_to_keeper, "keeper_split"),
            pl.col("given_label"),
        ),
        _unless_keep(is_twin, policy.exact_duplicates, pl.format("copy of image {} ({})", "twin", tie)),
        _unless_keep(
            in_group & ~is_twin & (pl.col("keeper") != pl.col("image_id")),
            policy.near_duplicates,
            pl.format("copy of image {} (near)", "keeper"),
        ),
    ]


def _unless_keep(applies: pl.Expr, action: str, why: pl.Expr) -> Rule:
    """A rule whose policy `keep` lets the later rules decide."""
    return (applies & pl.lit(action != "keep"), action, why, pl.col("given_label"))


def training_set(manifest: pl.DataFrame, curated: pl.DataFrame, folds: pl.DataFrame, *, include_review: bool) -> pl.DataFrame:
    """The images to train and to score on, with their label and part, sorted by image_id.

    The held-out part is stored as split `test` (see `held_out_split`). It has all its readable, labelled images with their
    given labels, whatever the policy says of them: only a person changes what a model is scored on.
    """
    actions = ["keep", "relabel", *(["review"] if include_review else [])]
    readable = manifest.filter(pl.col("status") == "ok", pl.col("split").ne_missing("unused"))
    part = held_out_split(readable.filter(pl.col("given_label").is_not_null()))
    rows = readable.join(curated, on="image_id").join(folds.select("image_id", "fold"), on="image_id").with_columns(split=part)
    held_out, by_policy = pl.col("split") == "test", pl.col("source") == "policy"
    label = pl.when(held_out & by_policy).then("given_label").otherwise("final_label")
    scored_on = held_out & (by_policy | (pl.col("action") != "drop"))
    trained_on = ~held_out & pl.col("action").is_in(actions)
    return (
        rows.filter(scored_on | trained_on)
        .select("image_id", "path", "uri", label=label, split="split", content_sha256="content_sha256")
        .drop_nulls("label")
        .sort("image_id")
    )


def held_out_split(labelled: pl.DataFrame) -> pl.Expr:
    """The part of each image (needs columns split and fold): its split, or without a test split, fold 0 as test.

    labelled: the readable, labelled images. A test split of unlabelled images, as competitions have, can score nothing.
    """
    if (labelled["split"] == "test").any():
        return pl.col("split").fill_null("train")
    part = pl.when(pl.col("split") == "validation").then(pl.lit("validation")).otherwise(pl.lit("train"))
    return pl.when(pl.col("fold") == 0).then(pl.lit("test")).otherwise(part)
