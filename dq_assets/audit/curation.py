"""What to do with each image, from the findings and the policy. One pure decision per image, with its reason.

What a policy never does: relabel or drop anything of the test split but copies; that is a person's decision.
"""

from __future__ import annotations

import polars as pl

from dq_assets import settings as st


def curate(
    manifest: pl.DataFrame, label_issues: pl.DataFrame, outliers: pl.DataFrame, near_dups: pl.DataFrame, policy: st.Curation
) -> pl.DataFrame:
    """The table curated_dataset: every row of the manifest once. The first rule that applies decides.

    A cross-split group keeps its test, then validation, member; its copies in other splits are dropped. An outlier is never
    relabelled: the model's opinion of a picture that is like no other is worth little.
    """
    facts = (
        manifest.select("image_id", "given_label", "split", "status", status_reason="reason")
        .join(label_issues.select("image_id", "is_label_issue", "suggested_label", "p_suggested", "p_given", issue_kind="kind"), on="image_id", how="left")
        .join(outliers.select("image_id", "is_outlier_issue", "outlier_score"), on="image_id", how="left")
        .join(near_dups, on="image_id", how="left")
    )
    keepers = facts.filter("is_keeper", pl.col("group_id").is_not_null()).select("group_id", keeper="image_id", keeper_split="split")
    facts = facts.join(keepers, on="group_id", how="left").sort("image_id")
    rules = _rules(policy)
    action, reason, label = pl.lit("keep"), pl.lit("no finding"), pl.col("given_label")
    for applies, then_action, why, final in reversed(rules):
        applies = applies.fill_null(False)
        action = pl.when(applies).then(then_action).otherwise(action)
        reason = pl.when(applies).then(why).otherwise(reason)
        label = pl.when(applies).then(final).otherwise(label)
    return facts.select("image_id", final_label=label, action=action, reason=reason, source=pl.lit("policy"))


Rule = tuple[pl.Expr, pl.Expr, pl.Expr, pl.Expr]
"""Whether it applies, the action, the reason and the final label, as expressions over one image's facts."""


def _rules(policy: st.Curation) -> list[Rule]:
    given = pl.col("given_label")
    # Only a person changes what a model is scored on.
    settled = pl.col("split").eq_missing("test")
    copy = ~pl.col("is_keeper") & pl.col("group_id").is_not_null()
    of_keeper = pl.format("copy of image {} ({}", "keeper", "kind")
    leaking = copy & pl.col("split").ne_missing(pl.col("keeper_split")) & pl.col("keeper_split").is_in(["test", "validation", "train"])
    leaking &= pl.col("split").is_in(["train", "validation"])
    same_picture = copy & pl.col("kind").is_in(["exact", "pixel"])
    conflict = pl.col("is_wrong_label")
    issue = pl.col("is_label_issue")
    sure = issue & (pl.col("p_suggested") > policy.relabel_above) & (pl.col("issue_kind") == "mislabeled")
    suggestion = pl.format("{} (p {}) instead of {} (p {})", "suggested_label", pl.col("p_suggested").round(3), "given_label", pl.col("p_given").round(3))
    sure_action = {"relabel": "relabel", "review": "review", "drop": "drop", "keep": "keep"}[policy.label_issues]
    return [
        (pl.col("status") != "ok", pl.lit("drop"), pl.format("{}: {}", "status", pl.col("status_reason").fill_null("no reason given")), given),
        (leaking, pl.lit("drop"), pl.format("{}), which is in {}: leaks across splits", of_keeper, "keeper_split"), given),
        (same_picture, pl.lit(policy.exact_duplicates), pl.format("{})", of_keeper), given),
        _unless_keep(copy, policy.near_duplicates, pl.format("{})", of_keeper), given),
        (given.is_null(), pl.lit("review"), pl.lit("has no label"), given),
        _unless_keep(pl.col("is_outlier_issue"), policy.outliers, pl.format("outlier (score {})", pl.col("outlier_score").round(3)), given),
        (conflict & ~settled & (pl.col("confidence") > policy.relabel_above), pl.lit("relabel"), pl.format("its copies say {}", "resolved_label"), pl.col("resolved_label")),
        (conflict, pl.lit("review"), pl.format("label conflict with its copies; {} is more likely", "resolved_label"), given),
        (
            sure & ~settled,
            pl.lit(sure_action),
            pl.format("label issue: {}", suggestion),
            pl.col("suggested_label") if sure_action == "relabel" else given,
        ),
        (issue, pl.lit("review"), pl.format("label issue, to be looked at: {}", suggestion), given),
    ]


def _unless_keep(applies: pl.Expr, action: str, why: pl.Expr, given: pl.Expr) -> Rule:
    """A rule whose policy `keep` lets the later rules decide."""
    return (applies & pl.lit(action != "keep"), pl.lit(action), why, given)


def training_set(manifest: pl.DataFrame, curated: pl.DataFrame, folds: pl.DataFrame, *, include_review: bool) -> pl.DataFrame:
    """The images to train and to score on, with their label and part, sorted by image_id.

    The held-out part (split `test`) is the test split, else the images of fold 0; it has the given labels and all readable
    images but copies that a policy dropped never leave it: only a person changes what a model is scored on.
    """
    actions = ["keep", "relabel", *(["review"] if include_review else [])]
    rows = (
        manifest.filter(pl.col("status") == "ok", pl.col("given_label").is_not_null(), pl.col("split").ne_missing("unused"))
        .join(curated, on="image_id")
        .join(folds.select("image_id", "fold"), on="image_id")
        .with_columns(split=held_out_split(manifest))
    )
    held_out = pl.col("split") == "test"
    label = pl.when(held_out & (pl.col("source") == "policy")).then("given_label").otherwise("final_label")
    by_person = held_out & ((pl.col("source") == "policy") | (pl.col("action") != "drop"))
    return (
        rows.filter(by_person | (~held_out & pl.col("action").is_in(actions)))
        .select("image_id", "path", "uri", label=label, split="split", content_sha256="content_sha256")
        .sort("image_id")
    )


def held_out_split(manifest: pl.DataFrame) -> pl.Expr:
    """The part of each image (needs columns split and fold): its split, or without a test split, fold 0 as test."""
    if (manifest["split"] == "test").any():
        return pl.col("split").fill_null("train")
    part = pl.when(pl.col("split") == "validation").then(pl.lit("validation")).otherwise(pl.lit("train"))
    return pl.when(pl.col("fold") == 0).then(pl.lit("test")).otherwise(part)
