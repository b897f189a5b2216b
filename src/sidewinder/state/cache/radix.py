"""A radix tree over token ids: which prefixes are known, and what is kept at their ends."""

from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Node(Generic[Value]):
    """The end of a prefix.

    Attributes:
        edge: tokens between the parent and here.
        parent: None at a root.
        depth: tokens from the root to here.
        children: by the first token of their edge.
        value: what is kept here, or None.
    """

    __slots__ = ("children", "depth", "edge", "parent", "value")

    def __init__(self, edge: tuple[int, ...], parent: "Node[Value] | None") -> None:
        self.edge = edge
        self.parent = parent
        self.depth: int = len(edge) + (parent.depth if parent is not None else 0)
        self.children: dict[int, Node[Value]] = {}
        self.value: Value | None = None

    def ancestors(self) -> "Iterator[Node[Value]]":
        """Nodes above this one, the nearest first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def tokens(self) -> tuple[int, ...]:
        """All tokens from the root to here."""
        edges = [self.edge, *(node.edge for node in self.ancestors())]
        return tuple(token for edge in reversed(edges) for token in edge)


class RadixTree(Generic[Value]):
    """Prefixes by namespace; two namespaces share nothing.

    Every leaf holds a value, and so does every node with a single child: `remove` keeps it so.
    """

    def __init__(self) -> None:
        self._roots: dict[str, Node[Value]] = {}

    def match(self, namespace: str, tokens: Sequence[int]) -> tuple[list[Node[Value]], int]:
        """Nodes with a value on the path of `tokens`, the shallowest first, and the number of
        leading tokens that the tree knows (it may end inside an edge)."""
        found: list[Node[Value]] = []
        node, depth = self._roots.get(namespace), 0
        while node is not None and depth < len(tokens):
            child = node.children.get(tokens[depth])
            if child is None:
                break
            n_equal = common_prefix(child.edge, tokens[depth : depth + len(child.edge)])
            depth += n_equal
            if n_equal < len(child.edge):
                break
            node = child
            if node.value is not None:
                found.append(node)
        return found, depth

    def insert(self, namespace: str, tokens: Sequence[int]) -> Node[Value]:
        """The node at the end of `tokens`, made if need be; the caller sets its value."""
        assert len(tokens), "the empty prefix has no state"
        node = self._roots.setdefault(namespace, Node((), None))
        rest = tuple(tokens)
        while rest:
            child = node.children.get(rest[0])
            if child is None:
                child = Node(rest, node)
                node.children[rest[0]] = child
                return child
            n_equal = common_prefix(child.edge, rest)
            if n_equal < len(child.edge):
                child = self._split(child, n_equal)
            node, rest = child, rest[n_equal:]
        return node

    def remove(self, node: Node[Value]) -> None:
        """Take the value off `node`, and every node that is needed no more out of the tree."""
        node.value = None
        while node.parent is not None and node.value is None and not node.children:
            del node.parent.children[node.edge[0]]
            node = node.parent
        if node.parent is not None and node.value is None and len(node.children) == 1:
            self._merge_into_child(node)
        if node.parent is None and not node.children:
            self._roots = {name: root for name, root in self._roots.items() if root is not node}

    def _split(self, node: Node[Value], n_tokens: int) -> Node[Value]:
        """Put a node after the first `n_tokens` tokens of `node`'s edge; return it."""
        assert node.parent is not None
        upper: Node[Value] = Node(node.edge[:n_tokens], node.parent)
        node.parent.children[node.edge[0]] = upper
        node.edge, node.parent = node.edge[n_tokens:], upper
        upper.children[node.edge[0]] = node
        return upper

    def _merge_into_child(self, node: Node[Value]) -> None:
        assert node.parent is not None
        (child,) = node.children.values()
        child.edge, child.parent = node.edge + child.edge, node.parent
        node.parent.children[child.edge[0]] = child


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading elements are equal; compares slices, so that the loop runs in C."""
    low, high = 0, min(len(one), len(other))
    if one[:high] == other[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle
    return low
