"""Best tag sequences and forward-backward messages of a chain in double precision, for documents of any length.

Documents are given as the emissions `[N, K]` of all their words, one document after the other, and their lengths.

Shapes: N words, M words asked for, K tags; L words of the longest chunk, C chunks, as in `chunks`.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pipelines.ner.chunks import Chunks, Pass, Recursion, cut_documents
from pipelines.ner.crf import Chain

# Within these bounds, and if any tag can follow any other in MIXING_STEPS steps, no possible tag of a word is less
# than about exp(-4 · (60 + 2 · 40)) times as probable as the likeliest: a normal double, so logarithms are not needed.
MAX_EMISSION_RANGE = 60.0
MAX_CHAIN_SCORE = 40.0
MIXING_STEPS = 4


ignore_impossible = np.errstate(divide="ignore", invalid="ignore", over="ignore")
"""Logarithms of zero and differences of infinities are in the nature of scores that forbid."""


def find_best_tags(emissions_NK: Tensor, lengths_B: Tensor, chain: Chain) -> Tensor:
    """The best legal tag sequences `[N]` (Viterbi 1967); ties go to the lower tag index."""
    return torch.from_numpy(Recursions(chain).find_best_tags(read_array(emissions_NK), lengths_B.numpy()))


def read_array(emissions_NK: Tensor) -> np.ndarray:
    """The tensor's values, copied only from another device or from a precision that NumPy does not know."""
    emissions_NK = emissions_NK.detach().cpu()
    return (emissions_NK if emissions_NK.dtype == torch.double else emissions_NK.float()).numpy()


class Recursions:
    """What a chain's passes need, built once. Threads may share it."""

    @ignore_impossible
    def __init__(self, chain: Chain) -> None:
        arrays = (scores.detach().cpu().double().numpy() for scores in vars(chain).values())
        self.transitions_KK, self.start_K, self.end_K = arrays
        self.max_plus = _build_max_plus(self.transitions_KK)
        self.backtrack = _build_backtrack(self.transitions_KK)
        self.log_sums = [_build_log_sum(steps_KK) for steps_KK in (self.transitions_KK, self.transitions_KK.T)]
        self.sum_products = [_build_sum_product(steps_KK) for steps_KK in (self.transitions_KK, self.transitions_KK.T)]
        scores = np.concatenate([self.transitions_KK.ravel(), self.start_K, self.end_K])
        self.only_forbids = bool(np.isin(scores, (0, -np.inf)).all())
        steps_KK = np.isfinite(self.transitions_KK).astype(float)
        mixes = (np.linalg.matrix_power(steps_KK, MIXING_STEPS) > 0).all()
        small = (np.abs(scores[np.isfinite(scores)]) <= MAX_CHAIN_SCORE).all() and not np.isnan(scores).any()
        self.tame = bool(mixes and small)

    def is_tame(self, emissions_NK: np.ndarray) -> bool:
        """Whether probabilities can be computed without logarithms; not if a score is NaN or an emission infinite."""
        return self.tame and float(np.ptp(emissions_NK, axis=1).max()) <= MAX_EMISSION_RANGE

    @ignore_impossible
    def find_best_tags(self, emissions_NK: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """See `find_best_tags`. Where a chain only forbids, the best tags of the words are the best legal sequence."""
        if not self.only_forbids:
            return self._run_viterbi(emissions_NK, lengths_B)
        tags_N: np.ndarray = emissions_NK.argmax(axis=1)
        breaks_B = self._find_illegal(tags_N, lengths_B)
        if breaks_B.any():
            breaks_N = breaks_B.repeat(lengths_B)
            tags_N[breaks_N] = self._run_viterbi(emissions_NK[breaks_N], lengths_B[breaks_B])
        return tags_N

    def _find_illegal(self, tags_N: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        """Which documents `[B]` have an illegal sequence."""
        has_words_B = lengths_B > 0
        ends = lengths_B.cumsum()[has_words_B]
        scores_N = self.transitions_KK[tags_N[np.arange(-1, len(tags_N) - 1)], tags_N]
        begins = ends - lengths_B[has_words_B]
        scores_N[begins] = self.start_K[tags_N[begins]]
        scores_N[ends - 1] += self.end_K[tags_N[ends - 1]]
        illegal_B = np.zeros(len(lengths_B), dtype=bool)
        illegal_B[find_documents(lengths_B, (scores_N < 0).nonzero()[0])] = True
        return illegal_B

    def _run_viterbi(self, emissions_NK: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        slabs = cut_documents(lengths_B)
        forward = Pass(self.max_plus, slabs, lambda chunks: _load(emissions_NK, chunks), self.start_K)
        for _ in forward.run():
            pass
        tags_N = np.zeros(len(emissions_NK), dtype=int)
        backtrack = Pass(self.backtrack, slabs, forward.recall, self.end_K, backward=True)
        for chunks, tags_LC in backtrack.run():
            words_LC, reached_LC = chunks.index()
            tags_N[words_LC[reached_LC]] = tags_LC[reached_LC]
        return tags_N


class Messages:
    """The messages of forward-backward (Rabiner 1989), as logarithms.

    A message includes the emissions of its word, counted from their maximum. It is computed from the neighbour's
    message scaled to a sum of one, and is not scaled itself; its sum is the word's scale. The scales of the messages
    from before multiply to the document's partition function, but for the end scores.
    """

    @ignore_impossible
    def __init__(self, emissions_NK: np.ndarray, lengths_B: np.ndarray, chain: Recursions) -> None:
        tame = chain.is_tame(emissions_NK)
        forward, backward = chain.sum_products if tame else chain.log_sums
        start_K, end_K = (np.exp(edge_K) if tame else edge_K for edge_K in (chain.start_K, chain.end_K))

        @lru_cache(maxsize=1)  # both passes often want the same slab, one after the other
        def load(chunks: Chunks) -> np.ndarray:
            """A slab's emissions `[L, K, C]`, each word's largest at zero; as factors if `tame`, else as logarithms."""
            inputs_LKC = _load(emissions_NK, chunks)
            inputs_LKC -= inputs_LKC.max(axis=1, keepdims=True)
            return np.exp(inputs_LKC, out=inputs_LKC) if tame else inputs_LKC

        self.tame, self.slabs = tame, cut_documents(lengths_B)
        self.forward = Pass(forward, self.slabs, load, start_K)
        self.backward = Pass(backward, self.slabs, load, end_K, backward=True)
        self.log_scales_N = np.empty(len(emissions_NK))
        for chunks, states_LKC in self.forward.run():
            words_LC, reached_LC = chunks.index()
            scales_LC = np.log(states_LKC.sum(axis=1)) if tame else sum_logs(states_LKC, axis=1)
            self.log_scales_N[words_LC[reached_LC]] = scales_LC[reached_LC]
        for _ in self.backward.run():
            pass

    def from_before(self, words_M: np.ndarray) -> np.ndarray:
        """Log-messages `[M, K]` that words, given by their index in N, have from those before them."""
        return self._gather(self.forward, words_M)

    def from_behind(self, words_M: np.ndarray) -> np.ndarray:
        """Log-messages `[M, K]` that words, given by their index in N, have from those behind them."""
        return self._gather(self.backward, words_M)

    @ignore_impossible
    def _gather(self, source: Pass, words_M: np.ndarray) -> np.ndarray:
        found_MK = np.empty((len(words_M), len(source.edge_K)))
        for chunks in self.slabs:
            here = chunks.contains(words_M).nonzero()[0]
            if len(here):
                position, column = chunks.locate(words_M[here])
                found_MK[here] = source.recall(chunks)[position, :, column]
        return np.log(found_MK, out=found_MK) if self.tame else found_MK


def find_documents(lengths_B: np.ndarray, words_M: np.ndarray) -> np.ndarray:
    """The documents' numbers `[M]` of words given by their index in N."""
    return lengths_B.cumsum().searchsorted(words_M, side="right")


def sum_logs(values: np.ndarray, axis: int) -> np.ndarray:
    """Logarithms of the sums of what `values` are logarithms of."""
    top = values.max(axis=axis, keepdims=True)
    top[np.isinf(top)] = 0
    sums: np.ndarray = np.log(np.exp(values - top).sum(axis=axis)) + top.squeeze(axis)
    return sums


def _build_max_plus(transitions_KK: np.ndarray) -> Recursion:
    """State: the score of the best sequence up to the word, for each tag of the word.

    Tags that are reached alike are computed once, and from those tags alone that may come before them.
    """
    distinct_KU, same_K = np.unique(transitions_KK, axis=1, return_inverse=True)
    few_U = np.isfinite(distinct_KU).sum(axis=0) <= 2
    many_KU, few_KU = distinct_KU[:, ~few_U], distinct_KU[:, few_U]
    rows_R = np.isfinite(many_KU).any(axis=1).nonzero()[0]
    many_RU1 = many_KU[rows_R, :, None]
    rows_2U = (-few_KU).argsort(axis=0, kind="stable")[:2]  # the legal ones, for these are more than -inf
    few_2U1 = np.take_along_axis(few_KU, rows_2U, axis=0)[:, :, None]
    order_K = np.concatenate([(~few_U).nonzero()[0], few_U.nonzero()[0]]).argsort()[same_K.ravel()]

    def tell(score_KC: np.ndarray) -> np.ndarray:
        """Of each tag, the best score `[K, C]` that reaches it from the word before, whose best counts as zero."""
        score_KC = score_KC - score_KC.max(axis=0)
        many_UC = (score_KC.take(rows_R, axis=0)[:, None] + many_RU1).max(axis=0, initial=-np.inf)
        few_UC = (score_KC.take(rows_2U, axis=0) + few_2U1).max(axis=0)
        return np.concatenate([many_UC, few_UC]).take(order_K, axis=0)

    return Recursion(np.add, tell, neutral=0.0, rtol=1e-14, atol=1e-12)


def _build_backtrack(transitions_KK: np.ndarray) -> Recursion:
    """State: the word's tag on the best path, found from the scores of all its tags and from the tag behind it."""

    def combine(heard_KC: np.ndarray, score_KC: np.ndarray) -> np.ndarray:
        """The best tag `[C]` of each word, given the tag behind it."""
        tag_C: np.ndarray = (score_KC + heard_KC).argmax(axis=0)
        return tag_C

    return Recursion(combine, lambda tag_C: transitions_KK.take(tag_C, axis=1), neutral=0.0, rtol=0.0, atol=0.0)


def _build_sum_product(transitions_KK: np.ndarray) -> Recursion:
    """State: the probability of the word's tags and emissions given what is before, up to the word's scale."""
    factors_KK = np.exp(transitions_KK.T)
    factors_JK = np.concatenate([factors_KK, np.ones_like(factors_KK[:1])])  # one more row, for the sum

    def tell(state_KC: np.ndarray) -> np.ndarray:
        """Of each tag, the weight `[K, C]` that reaches it from the word before, whose sum counts as one."""
        sums_JC = factors_JK.dot(state_KC)
        told_KC: np.ndarray = sums_JC[:-1] / sums_JC[-1]
        return told_KC

    return Recursion(np.multiply, tell, neutral=1.0, rtol=1e-12, atol=0.0)


def _build_log_sum(transitions_KK: np.ndarray) -> Recursion:
    """As `_build_sum_product`, in logarithms: slower, and safe for any scores."""

    def tell(state_KC: np.ndarray) -> np.ndarray:
        """Of each tag, the logarithm `[K, C]` of what `_build_sum_product` tells."""
        state_KC = state_KC - sum_logs(state_KC, axis=0)
        return sum_logs(state_KC[:, None] + transitions_KK[:, :, None], axis=0)

    return Recursion(np.add, tell, neutral=0.0, rtol=1e-14, atol=1e-12)


def _load(emissions_NK: np.ndarray, chunks: Chunks) -> np.ndarray:
    """Emissions of a slab's chunks, `[L, K, C]`, a new array; beyond a chunk's end, those of any words."""
    words_LC = chunks.index()[0].clip(max=len(emissions_NK) - 1)
    return np.ascontiguousarray(emissions_NK.take(words_LC, axis=0).transpose(0, 2, 1), dtype=np.double)
