"""The matches of keypoints are those of the library's own matcher."""

from __future__ import annotations

import cv2
import numpy as np

from dq_assets.audit.witness import _mutual_matches


def test_mutual_matches_equal_the_cross_checked_brute_force_matcher() -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(0, 256, (n, 32), dtype=np.uint8) for n in (200, 180))
    right[:90] = left[40:130] ^ (rng.random((90, 32)) < 0.1).astype(np.uint8)
    theirs = sorted(cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(left, right), key=lambda match: match.distance)
    assert _mutual_matches(left, right).tolist() == [[match.queryIdx, match.trainIdx] for match in theirs]
