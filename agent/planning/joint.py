"""Limits that go together: an engine sizes its cache from what its share leaves, so share, sequences, batch and
context depend on each other. Fewer sequences take less for logits and graphs, which leaves cache for a longer context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from math import ceil

from agent.planning.devices import Offer
from agent.planning.layout import largest
from agent.planning.limits import POOLING_TASKS, STEP, Choice, with_length
from agent.planning.memory.base import Estimate
from agent.planning.plan import Limits, Placement

#: Fewer tokens than this for each sequence, and most of them would only wait: a short request with its answer.
TOKENS_A_SEQUENCE = 512
#: Without a wish, fewer sequences are enough where memory is short, and a smaller batch: engines' own on small cards.
FEW_SEQUENCES, SMALL_BATCH = 16, 2048


@dataclass(frozen=True, slots=True)
class Wish:
    """What a trial must reach."""

    shortest: int  # tokens of context, at least
    kept: frozenset[str] = frozenset()  # limits that may not be reduced
    fewest: int = FEW_SEQUENCES
    requests: int | None = None  # of the longest length, to be held at the same time
    tokens: int = 0  # of cache, for all sequences together


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run it, and what it would take. Bytes are of each device, or of the host."""

    offers: tuple[Offer, ...]
    placement: Placement
    limits: Limits
    estimate: Estimate
    room: int  # what the engine may take altogether
    claimed: int  # what it takes
    context: int  # of the driver, where the engine does not count it
    missing: int  # 0: it fits
    doubt: str = ""  # what that depends on

    @property
    def assured(self) -> bool:
        return not self.missing and not self.doubt

    @property
    def requests(self) -> float:
        """Of the longest length, that the cache holds in any case."""
        pool, needed = self.estimate.pool, self.estimate.needed
        if pool is None:
            return 0.0
        return (pool.bytes - pool.uncertainty) / needed if needed else float(1 << 16)

    @property
    def tokens(self) -> float:
        """Of all sequences together, that the cache holds in any case."""
        return self.requests * self.limits.max_model_len


class Joint(ABC):
    """Limits for one place. `choice` is what is asked for, or taken where nothing is asked."""

    def __init__(self, choice: Choice, task: str) -> None:
        self.choice, self.task = choice, task
        self._solved: dict[Wish, Way] = {}

    @abstractmethod
    def at(self, limits: Limits) -> Way:
        """With exactly these limits."""

    @abstractmethod
    def no_larger(self, way: Way, wish: Wish) -> Way:
        """Without what nobody needs, where the wish says how much that is."""

    def solved(self, wish: Wish) -> Way:
        """The best limits that reach the wish; or with `missing` or `doubt` the least ones."""
        if wish not in self._solved:
            self._solved[wish] = self._best(wish)
        return self._solved[wish]

    def _best(self, wish: Wish) -> Way:
        wanted = self.choice.limits
        way = self.at(wanted)
        if not self.reaches(way, wish):
            low = self.least(wish)
            if not self.reaches(low, wish):
                return low
            way = self._more_sequences(self._longer(low, wanted.max_model_len, wish), wish)
        return self.no_larger(self._trimmed(way, wish), wish)

    def least(self, wish: Wish) -> Way:
        """With the least limits that the wish allows; with `missing` or `doubt` if they do not reach it."""
        low = self.at(with_length(self._small(wish), wish.shortest, self.task))
        if self.reaches(low, wish) or low.missing or low.doubt:
            return low
        return replace(low, missing=self._lacking(low, wish))

    @staticmethod
    def reaches(way: Way, wish: Wish) -> bool:
        return way.assured and (wish.requests is None or way.requests >= wish.requests) and way.tokens >= wish.tokens

    @staticmethod
    def _lacking(way: Way, wish: Wish) -> int:
        requests = max(wish.requests or 1, wish.tokens / way.limits.max_model_len)
        return max(1, ceil((requests - way.requests) * way.estimate.needed))

    def _small(self, wish: Wish) -> Limits:
        """Fewer sequences and a smaller batch, where nobody asked for more."""
        limits = self.choice.limits
        seqs = limits.max_num_seqs if "max_num_seqs" in wish.kept else min(limits.max_num_seqs, wish.fewest)
        batch = min(limits.max_num_batched_tokens, SMALL_BATCH)
        if self.task not in POOLING_TASKS:
            batch = max(batch, min(seqs, limits.max_num_batched_tokens))
        return replace(limits, max_num_seqs=seqs, max_num_batched_tokens=batch)

    def _longer(self, low: Way, most: int, wish: Wish) -> Way:
        """The longest context that the pool of `low` holds: what a request takes grows in steady steps."""
        least = low.limits.max_model_len
        if most <= least:
            return low
        high = self.at(with_length(low.limits, most, self.task))
        if self.reaches(high, wish):
            return high
        pool = low.estimate.pool
        grown = high.estimate.needed - low.estimate.needed
        if pool is None or grown <= 0:
            return low
        spare = (pool.bytes - pool.uncertainty) / (wish.requests or 1) - low.estimate.needed
        guess = max(least, (least + int(spare / grown * (most - least))) // STEP * STEP)
        for length in (guess, guess - STEP, guess - 4 * STEP):
            if least < length < most and self.reaches(way := self.at(with_length(low.limits, length, self.task)), wish):
                return way
        made: dict[int, Way] = {least: low}

        def fits(length: int) -> bool:
            made[length] = self.at(with_length(low.limits, length, self.task))
            return self.reaches(made[length], wish)

        found = largest(fits, least, max(least, guess), STEP)
        return made[found] if found is not None else low

    def _more_sequences(self, way: Way, wish: Wish) -> Way:
        """As many sequences as the pool holds well, if they leave the context as it is."""
        most, fewest = self.choice.limits.max_num_seqs, way.limits.max_num_seqs
        seqs = min(most, max(fewest, _round(int(self._tokens(way)) // TOKENS_A_SEQUENCE)))
        while seqs > fewest:
            batch = max(way.limits.max_num_batched_tokens, min(seqs, self.choice.limits.max_num_batched_tokens))
            more = self.at(replace(way.limits, max_num_seqs=seqs, max_num_batched_tokens=batch))
            if self.reaches(more, wish):
                return more
            seqs = max(fewest, seqs // 2)
        return way

    def _trimmed(self, way: Way, wish: Wish) -> Way:
        """Without sequences that could only wait for room."""
        tokens, seqs = self._tokens(way), way.limits.max_num_seqs
        if "max_num_seqs" in wish.kept or not tokens or self.task in POOLING_TASKS:
            return way
        enough = max(1, _round(int(tokens) // TOKENS_A_SEQUENCE), wish.requests or 1)
        if enough >= seqs:
            return way
        fewer = self.at(replace(way.limits, max_num_seqs=enough))
        return fewer if self.reaches(fewer, wish) else way

    @staticmethod
    def _tokens(way: Way) -> float:
        return way.estimate.concurrency * way.limits.max_model_len


def _round(seqs: int) -> int:
    """Captured batches are multiples of eight."""
    return seqs // 8 * 8 if seqs >= 8 else seqs
