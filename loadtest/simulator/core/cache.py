"""The KV cache of a simulated engine, with its prefix cache: paged blocks (vLLM-like) or a radix tree (SGLang-like).

A prompt is a string of `TOKEN_CHARS` characters a token; two prompts share a prefix where their strings do. Capacity
is conserved: at any time tokens in use + tokens cached and evictable + tokens free = capacity.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Protocol

TOKEN_CHARS = 4


class Holding:
    """What one running request holds of the KV cache; made by a cache, meaningful to that cache only."""

    __slots__ = ("blocks", "committed", "hashes", "key", "node", "private_tokens", "prompt_tokens", "tag", "tree_tokens")

    def __init__(self, key: str, number: int) -> None:
        self.key = key
        self.prompt_tokens = len(key) // TOKEN_CHARS
        self.tag = generated_token(number)
        self.blocks: list[int] = []  # blocks held, in order of the tokens (paged)
        self.hashes: list[int] = []  # identity of each full block of the prompt (paged)
        self.committed = 0  # full blocks whose content is known to the prefix cache (paged)
        self.node: Any = None  # deepest tree node held (radix)
        self.tree_tokens = 0  # tokens from the root down to that node (radix)
        self.private_tokens = 0  # tokens held outside the tree (radix)


def generated_token(number: int) -> str:
    """One token of output of the request with this number: text that no prompt contains."""
    high, low = divmod(number, 6400)
    return chr(0xE000 + low) + chr(0xE000 + high % 6400) + "\ue000\ue001"


class KvCache(Protocol):
    """What the engine asks of a KV cache; all sizes in tokens."""

    capacity_tokens: int
    page_tokens: int

    def hold(self, key: str, number: int) -> Holding: ...
    def match(self, holding: Holding, known_tokens: int) -> int: ...
    def grow(self, holding: Holding, tokens: int) -> bool: ...
    def commit(self, holding: Holding, computed_tokens: int) -> None: ...
    def release(self, holding: Holding, computed_tokens: int, *, keep: bool) -> None: ...
    def used_tokens(self) -> int: ...
    def available_tokens(self) -> int: ...
    def flush(self) -> None: ...


class BlockCache:
    """Paged KV cache with blocks of `page_tokens`; full blocks are found again by a hash chained over their content.

    A block that nobody holds keeps its content until it is needed: least recently freed first, the end of a request
    before its beginning (source: vLLM, design document "Automatic Prefix Caching").
    """

    def __init__(self, capacity_tokens: int, page_tokens: int = 16, *, prefix_cache: bool = True) -> None:
        n_blocks = capacity_tokens // page_tokens
        self.page_tokens = page_tokens
        self.capacity_tokens = n_blocks * page_tokens
        self._prefix_cache = prefix_cache
        self._references = [0] * n_blocks
        self._hash_of: list[int | None] = [None] * n_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(n_blocks))
        self._cached: dict[int, int] = {}

    def hold(self, key: str, number: int) -> Holding:
        """A new, empty holding for a prompt."""
        holding = Holding(key, number)
        if self._prefix_cache:
            size, chain = self.page_tokens * TOKEN_CHARS, 0
            for start in range(0, len(key) - size + 1, size):
                chain = hash((chain, key[start : start + size]))
                holding.hashes.append(chain)
        return holding

    def _hash(self, holding: Holding, index: int) -> int:
        return holding.hashes[index] if index < len(holding.hashes) else hash((holding.tag, index))

    def match(self, holding: Holding, known_tokens: int) -> int:
        """Take the blocks that hold the beginning of these tokens already; the last token is always computed anew."""
        if not self._prefix_cache:
            return 0
        while len(holding.blocks) < (known_tokens - 1) // self.page_tokens:
            block = self._cached.get(self._hash(holding, len(holding.blocks)))
            if block is None:
                break
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1
            holding.blocks.append(block)
        holding.committed = len(holding.blocks)
        return len(holding.blocks) * self.page_tokens

    def grow(self, holding: Holding, tokens: int) -> bool:
        """Make room for this many tokens in all; false, and nothing changed, where there is none."""
        missing = -(-tokens // self.page_tokens) - len(holding.blocks)
        if missing <= 0:
            return True
        if missing > len(self._free):
            return False
        for _ in range(missing):
            block, _ = self._free.popitem(last=False)
            known = self._hash_of[block]
            if known is not None:
                del self._cached[known]
                self._hash_of[block] = None
            self._references[block] = 1
            holding.blocks.append(block)
        return True

    def commit(self, holding: Holding, computed_tokens: int) -> None:
        """Make the full blocks among the computed tokens findable."""
        if not self._prefix_cache:
            return
        for index in range(holding.committed, computed_tokens // self.page_tokens):
            block, known = holding.blocks[index], self._hash(holding, index)
            if known not in self._cached:
                self._cached[known] = block
                self._hash_of[block] = known
        holding.committed = max(holding.committed, computed_tokens // self.page_tokens)

    def release(self, holding: Holding, computed_tokens: int, *, keep: bool) -> None:
        """Give back everything; full blocks stay findable until they are needed."""
        for block in reversed(holding.blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
        holding.blocks = []
        holding.committed = 0

    def used_tokens(self) -> int:
        """Tokens' worth of blocks that requests hold."""
        return self.capacity_tokens - len(self._free) * self.page_tokens

    def available_tokens(self) -> int:
        """Tokens' worth of blocks that nobody holds, whether their content is cached or not."""
        return len(self._free) * self.page_tokens

    def flush(self) -> None:
        """Forget every cached block."""
        for block in self._cached.values():
            self._hash_of[block] = None
        self._cached.clear()


class _Node:
    __slots__ = ("children", "holders", "key", "parent", "used")

    def __init__(self, key: str, parent: _Node | None) -> None:
        self.key = key
        self.parent = parent
        self.children: dict[str, _Node] = {}
        self.holders = 0
        self.used = 0

    @property
    def tokens(self) -> int:
        return len(self.key) // TOKEN_CHARS


class RadixCache:
    """KV cache with pages of one token and a radix tree of what was computed; leaves nobody holds go first, oldest first.

    Source: "SGLang: Efficient Execution of Structured Language Model Programs" (RadixAttention), and `page_size 1`,
    `radix_eviction_policy lru` in the engine's own `/server_info`.
    """

    def __init__(self, capacity_tokens: int, *, prefix_cache: bool = True) -> None:
        self.capacity_tokens = capacity_tokens
        self.page_tokens = 1
        self._prefix_cache = prefix_cache
        self._root = _Node("", None)
        self._root.holders = 1
        self._free = capacity_tokens
        self._evictable = 0
        self._time = 0

    def hold(self, key: str, number: int) -> Holding:
        """A new, empty holding for a prompt."""
        holding = Holding(key, number)
        holding.node = self._root
        return holding

    def match(self, holding: Holding, known_tokens: int) -> int:
        """Take the longest known prefix of these tokens; the last token is always computed anew."""
        if not self._prefix_cache:
            return 0
        node, tokens = self._walk(self._text(holding, known_tokens - 1))
        self._take(node)
        holding.node, holding.tree_tokens = node, tokens
        return tokens

    def grow(self, holding: Holding, tokens: int) -> bool:
        """Make room for this many tokens in all; false, and nothing changed, where there is none."""
        missing = tokens - holding.private_tokens - holding.tree_tokens
        if missing <= 0:
            return True
        if missing > self._free + self._evictable:
            return False
        if missing > self._free:
            self._evict(missing - self._free)
        self._free -= missing
        holding.private_tokens += missing
        return True

    def commit(self, holding: Holding, computed_tokens: int) -> None:
        """Put the computed part of the prompt into the tree, so that others can share it while this request runs."""
        upto = min(computed_tokens, holding.prompt_tokens)
        if not self._prefix_cache or upto <= holding.tree_tokens:
            return
        total = holding.tree_tokens + holding.private_tokens
        node = self._insert(holding, upto)
        self._take(node)
        self._drop(holding.node)
        holding.node, holding.tree_tokens = node, upto
        holding.private_tokens = total - upto

    def release(self, holding: Holding, computed_tokens: int, *, keep: bool) -> None:
        """Give back everything; where `keep`, what was computed stays in the tree until room is needed."""
        if keep and self._prefix_cache and computed_tokens > holding.tree_tokens:
            total = holding.tree_tokens + holding.private_tokens
            self._insert(holding, computed_tokens)
            holding.private_tokens = total - computed_tokens
        self._free += holding.private_tokens
        self._drop(holding.node)
        holding.node, holding.tree_tokens = self._root, 0
        holding.private_tokens = 0

    def used_tokens(self) -> int:
        """Tokens that requests hold, in the tree or outside."""
        return self.capacity_tokens - self._free - self._evictable

    def available_tokens(self) -> int:
        """Tokens that are free or can be made so."""
        return self._free + self._evictable

    def flush(self) -> None:
        """Forget everything that nobody holds."""
        self._evict(self._evictable)

    def _text(self, holding: Holding, tokens: int) -> str:
        if tokens <= holding.prompt_tokens:
            return holding.key[: tokens * TOKEN_CHARS]
        return holding.key + holding.tag * (tokens - holding.prompt_tokens)

    def _insert(self, holding: Holding, tokens: int) -> _Node:
        """Put these tokens of the holding into the tree, unheld; what the tree knew already is freed as a duplicate."""
        text = self._text(holding, tokens)
        node, known = self._walk(text)
        self._free += known - holding.tree_tokens
        if known < tokens:
            leaf = _Node(text[known * TOKEN_CHARS :], node)
            leaf.used = self._time
            node.children[leaf.key[:TOKEN_CHARS]] = leaf
            self._evictable += leaf.tokens
            node = leaf
        return node

    def _walk(self, text: str) -> tuple[_Node, int]:
        """Follow the text down the tree, splitting a node where they part; the node reached and its depth."""
        self._time += 1
        node, at = self._root, 0
        while at < len(text):
            child = node.children.get(text[at : at + TOKEN_CHARS])
            if child is None:
                break
            common = _common_chars(child.key, text[at : at + len(child.key)])
            if common < len(child.key):
                child = self._split(child, common)
            child.used = self._time
            node, at = child, at + common
        return node, at // TOKEN_CHARS

    def _split(self, node: _Node, at: int) -> _Node:
        parent = node.parent
        assert parent is not None
        upper = _Node(node.key[:at], parent)
        upper.holders, upper.used = node.holders, node.used
        node.key = node.key[at:]
        node.parent = upper
        upper.children[node.key[:TOKEN_CHARS]] = node
        parent.children[upper.key[:TOKEN_CHARS]] = upper
        return upper

    def _take(self, node: _Node) -> None:
        at: _Node | None = node
        while at is not None and at is not self._root:
            if at.holders == 0:
                self._evictable -= at.tokens
            at.holders += 1
            at = at.parent

    def _drop(self, node: _Node) -> None:
        at: _Node | None = node
        while at is not None and at is not self._root:
            at.holders -= 1
            if at.holders == 0:
                self._evictable += at.tokens
            at = at.parent

    def _evict(self, tokens: int) -> None:
        while tokens > 0:
            leaves = [node for node in self._nodes() if not node.children and node.holders == 0]
            for leaf in sorted(leaves, key=lambda node: node.used):
                if tokens <= 0:
                    break
                assert leaf.parent is not None
                del leaf.parent.children[leaf.key[:TOKEN_CHARS]]
                self._evictable -= leaf.tokens
                self._free += leaf.tokens
                tokens -= leaf.tokens

    def _nodes(self) -> list[_Node]:
        found, stack = [], list(self._root.children.values())
        while stack:
            node = stack.pop()
            found.append(node)
            stack.extend(node.children.values())
        return found


def _common_chars(left: str, right: str) -> int:
    """Length of the common beginning of two strings, rounded down to whole tokens."""
    if left == right:
        return len(left)
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return low // TOKEN_CHARS * TOKEN_CHARS
