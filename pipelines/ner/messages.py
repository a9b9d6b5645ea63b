"""Best tag sequences and forward-backward messages of a chain in double precision, for documents of any length.

Documents are given as the emissions `[N, K]` of all their words, one document after the other, and their lengths.

Shapes: N words, M words asked for, K tags; L words of the longest chunk, C chunks, as in `chunks`.
"""

from functools import lru_cache

import torch
from torch import Tensor

from pipelines.ner.chunks import Chunks, Pass, Recursion, cut_documents
from pipelines.ner.crf import Chain

# Within these bounds, and if any tag can follow any other in MIXING_STEPS steps, no possible tag of a word is less
# than about exp(-4 · (60 + 2 · 40)) times as probable as the likeliest: a normal double, so logarithms are not needed.
MAX_EMISSION_RANGE = 60.0
MAX_CHAIN_SCORE = 40.0
MIXING_STEPS = 4


def find_best_tags(emissions_NK: Tensor, lengths_B: Tensor, chain: Chain) -> Tensor:
    """The best legal tag sequences `[N]` (Viterbi 1967); ties go to the lower tag index."""
    slabs = cut_documents(lengths_B)
    forward = Pass(
        _build_max_plus(chain.transitions_KK), slabs, lambda chunks: _load(emissions_NK, chunks), chain.start_K
    )
    for _ in forward.run():
        pass
    tags_N = torch.zeros(len(emissions_NK), dtype=torch.long)
    backtrack = Pass(_build_backtrack(chain.transitions_KK), slabs, forward.recall, chain.end_K, backward=True)
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

    def __init__(self, emissions_NK: Tensor, lengths_B: Tensor, chain: Chain) -> None:
        tame = _is_tame(emissions_NK, chain)
        build = _build_sum_product if tame else _build_log_sum
        start_K, end_K = (edge_K.exp() if tame else edge_K for edge_K in (chain.start_K, chain.end_K))

        @lru_cache(maxsize=1)  # both passes often want the same slab, one after the other
        def load(chunks: Chunks) -> Tensor:
            inputs_LKC = _load(emissions_NK, chunks)
            inputs_LKC -= inputs_LKC.amax(dim=1, keepdim=True)
            return inputs_LKC.exp_() if tame else inputs_LKC

        self.tame, self.slabs = tame, cut_documents(lengths_B)
        self.forward = Pass(build(chain.transitions_KK), self.slabs, load, start_K)
        self.backward = Pass(build(chain.transitions_KK.T), self.slabs, load, end_K, backward=True)
        self.log_scales_N = chain.start_K.new_empty(len(emissions_NK))
        for chunks, states_LKC in self.forward.run():
            words_LC, reached_LC = chunks.index()
            scales_LC = states_LKC.sum(dim=1).log() if tame else states_LKC.logsumexp(dim=1)
            self.log_scales_N[words_LC[reached_LC]] = scales_LC[reached_LC]
        for _ in self.backward.run():
            pass

    def from_before(self, words_M: Tensor) -> Tensor:
        """Log-messages `[M, K]` that words, given by their index in N, have from those before them."""
        return self._gather(self.forward, words_M)

    def from_behind(self, words_M: Tensor) -> Tensor:
        """Log-messages `[M, K]` that words, given by their index in N, have from those behind them."""
        return self._gather(self.backward, words_M)

    def _gather(self, source: Pass, words_M: Tensor) -> Tensor:
        found_MK = self.log_scales_N.new_empty(len(words_M), len(source.edge_K))
        for chunks in self.slabs:
            here = chunks.contains(words_M).nonzero().squeeze(1)
            if len(here):
                position, column = chunks.locate(words_M[here])
                found_MK[here] = source.recall(chunks)[position, :, column]
        return found_MK.log_() if self.tame else found_MK


def _build_max_plus(transitions_KK: Tensor) -> Recursion:
    """State: the score of the best sequence up to the word, for each tag of the word.

    Tags that are reached alike are computed once, and those with few tags before them from these alone.
    """
    distinct_KU, same_K = transitions_KK.unique(dim=1, return_inverse=True)
    legal_KU = distinct_KU.isfinite()
    few_U = legal_KU.sum(dim=0) <= 2
    many_KU, few_KU = distinct_KU[:, ~few_U, None], distinct_KU[:, few_U]
    rows_2U = legal_KU[:, few_U].byte().topk(min(2, len(few_KU)), dim=0).indices
    few_2U1 = few_KU.gather(0, rows_2U)[:, :, None]
    order_K = torch.cat([(~few_U).nonzero(), few_U.nonzero()]).squeeze(1).argsort()[same_K]

    def tell(score_KC: Tensor) -> Tensor:
        score_KC = score_KC - score_KC.amax(dim=0)
        many_UC = (score_KC[:, None] + many_KU).amax(dim=0)
        few_UC = (score_KC[rows_2U] + few_2U1).amax(dim=0)
        return torch.cat([many_UC, few_UC])[order_K]

    return Recursion(torch.add, tell, neutral=0.0, rtol=1e-14, atol=1e-12)


def _build_backtrack(transitions_KK: Tensor) -> Recursion:
    """State: the word's tag on the best path, found from the scores of all its tags and from the tag behind it."""
    num_tags = len(transitions_KK)
    tag_K1 = torch.arange(num_tags, dtype=torch.double)[:, None]

    def combine(heard_KC: Tensor, score_KC: Tensor) -> Tensor:
        total_KC = score_KC + heard_KC
        tag_KC = torch.where(total_KC == total_KC.amax(dim=0), tag_K1, num_tags)
        return tag_KC.amin(dim=0).long() % num_tags  # the first of the best; many times faster than by argmax

    def tell(tag_C: Tensor) -> Tensor:
        return transitions_KK.gather(1, tag_C.expand(num_tags, -1))

    return Recursion(combine, tell, neutral=0.0, rtol=0.0, atol=0.0)


def _build_sum_product(transitions_KK: Tensor) -> Recursion:
    """State: the probability of the word's tags and emissions given what is before, up to the word's scale."""
    factors_KK = transitions_KK.T.exp()
    return Recursion(
        torch.mul, lambda state_KC: factors_KK @ (state_KC / state_KC.sum(dim=0)), neutral=1.0, rtol=1e-12, atol=0.0
    )


def _build_log_sum(transitions_KK: Tensor) -> Recursion:
    """As `_build_sum_product`, in logarithms: slower, and safe for any scores."""

    def tell(state_KC: Tensor) -> Tensor:
        state_KC = state_KC - state_KC.logsumexp(dim=0)
        return (state_KC[:, None] + transitions_KK[:, :, None]).logsumexp(dim=0)

    return Recursion(torch.add, tell, neutral=0.0, rtol=1e-14, atol=1e-12)


def _is_tame(emissions_NK: Tensor, chain: Chain) -> bool:
    """Whether probabilities can be computed without logarithms; not if a score is NaN or an emission is infinite."""
    scores = torch.cat([chain.transitions_KK.flatten(), chain.start_K, chain.end_K])
    steps_KK = chain.transitions_KK.isfinite().double()
    mixes = bool((torch.linalg.matrix_power(steps_KK, MIXING_STEPS) > 0).all())
    small = bool((scores[scores.isfinite()].abs() <= MAX_CHAIN_SCORE).all()) and not scores.isnan().any()
    widest = float((emissions_NK.amax(dim=1) - emissions_NK.amin(dim=1)).max())
    return mixes and small and widest <= MAX_EMISSION_RANGE


def _load(emissions_NK: Tensor, chunks: Chunks) -> Tensor:
    """Emissions of a slab's chunks, `[L, K, C]`, a new tensor; beyond a chunk's end, those of any words."""
    words_LC = chunks.index()[0].clamp(max=len(emissions_NK) - 1)
    inputs_LCK = emissions_NK[words_LC]
    return inputs_LCK.transpose(1, 2).to(torch.double, memory_format=torch.contiguous_format).contiguous()
