"""Decoding of one document word by word, in logarithms: what the chunked passes must equal."""

import itertools

import torch

from pipelines.ner.entities import Span
from pipelines.ner.labels import read_spans


def find_best_tags(emissions_WK, chain):
    """The best tags of one document (Viterbi 1967); ties go to the lower tag index."""
    score_K = chain.start_K + emissions_WK[0]
    pointers = []
    for own_K in emissions_WK[1:]:
        best_K, pointer_K = (score_K[:, None] + chain.transitions_KK).max(dim=0)
        score_K = best_K + own_K
        pointers.append(pointer_K.tolist())
    tags = [int((score_K + chain.end_K).argmax())]
    for pointer in reversed(pointers):
        tags.append(pointer[tags[-1]])
    return tags[::-1]


def run_forward_backward(emissions_WK, chain):
    """Forward scores `[W, K]`, emission included; backward scores `[W, K]`, excluded; the log-partition."""
    alpha = [chain.start_K + emissions_WK[0]]
    for own_K in emissions_WK[1:]:
        alpha.append((alpha[-1][:, None] + chain.transitions_KK).logsumexp(dim=0) + own_K)
    beta = [chain.end_K]
    for own_K in emissions_WK[1:].flip(0):
        beta.append((chain.transitions_KK + own_K + beta[-1]).logsumexp(dim=1))
    return torch.stack(alpha), torch.stack(beta[::-1]), (alpha[-1] + chain.end_K).logsumexp(dim=0)


def score_tags(tags, emissions_WK, chain):
    tags = torch.tensor(tags)
    steps = chain.transitions_KK[tags[:-1], tags[1:]].sum()
    own = emissions_WK.gather(1, tags[:, None]).sum()
    return (chain.start_K[tags[0]] + own + steps + chain.end_K[tags[-1]]).item()


def decode(emissions_WK, scheme, chain):
    """Spans with their probabilities: the sum over all sequences that begin, go on and end as the entity does."""
    if not len(emissions_WK):
        return []
    tags = find_best_tags(emissions_WK.double(), chain)
    emissions_WK = emissions_WK.double().log_softmax(dim=1)
    alpha_WK, beta_WK, log_z = run_forward_backward(emissions_WK, chain)
    spans = []
    for span in read_spans([scheme.tags[tag] for tag in tags], scheme.name):
        spellings = [tags[span.start : span.end]]
        if scheme.name == "IOB1":
            role, label = scheme.parsed[tags[span.start]]
            other = ("B" if role == "I" else "I", label)
            if other in scheme.parsed:
                spellings.append([scheme.parsed.index(other), *tags[span.start + 1 : span.end]])
        scores = [
            _score_spelling(span, spelling, scheme, chain, emissions_WK, alpha_WK, beta_WK) for spelling in spellings
        ]
        probability = (torch.stack(scores).logsumexp(dim=0) - log_z).exp().item()
        spans.append(Span(span.start, span.end, span.label, min(probability, 1.0)))
    return spans


def _score_spelling(span, spelling, scheme, chain, emissions_WK, alpha_WK, beta_WK):
    def continues(before, after):
        (role, label), (next_role, next_label) = scheme.parsed[before], scheme.parsed[after]
        return role in "BI" and next_role in "IE" and label == next_label

    first, last, every = spelling[0], spelling[-1], range(len(scheme.tags))
    score = sum(emissions_WK[span.start + i, tag] for i, tag in enumerate(spelling))
    score = score + sum(chain.transitions_KK[a, b] for a, b in itertools.pairwise(spelling))
    if span.start:
        allowed = [tag for tag in every if not continues(tag, first)]
        score = score + (alpha_WK[span.start - 1] + chain.transitions_KK[:, first])[allowed].logsumexp(dim=0)
    else:
        score = score + chain.start_K[first]
    if span.end == len(emissions_WK):
        return score + chain.end_K[last]
    allowed = [tag for tag in every if not continues(last, tag)]
    onward_K = chain.transitions_KK[last] + emissions_WK[span.end] + beta_WK[span.end]
    return score + onward_K[allowed].logsumexp(dim=0)
