"""The radix tree against a dictionary, and its own rules."""

from hypothesis import given
from hypothesis import strategies as st

from sidewinder.state.cache.radix import RadixTree, common_prefix

texts = st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple)
names = st.sampled_from(["", "salted"])


@given(st.lists(st.tuples(st.booleans(), names, texts), max_size=40), names, texts)
def test_it_is_a_dictionary_with_prefixes(edits, name, query):
    tree, known = RadixTree(), {}
    for is_insert, own, text in edits:
        if is_insert:
            node = tree.insert(own, text)
            node.value = known[own, text] = (own, text)
            assert (node.depth, node.tokens()) == (len(text), text)
        elif (own, text) in known:
            tree.remove(tree.insert(own, text))
            del known[own, text]
    found, n_shared = tree.match(name, query)
    expected = [(name, query[:n]) for n in range(1, len(query) + 1) if (name, query[:n]) in known]
    assert [node.value for node in found] == expected
    of_name = [text for own, text in known if own == name]
    assert n_shared == max((common_prefix(query, text) for text in of_name), default=0)


def test_an_empty_tree_keeps_no_nodes():
    tree = RadixTree()
    for text in [(1, 2, 3), (1, 2), (1, 5), (9,)]:
        tree.insert("", text).value = text
    for text in [(1, 2), (9,), (1, 5), (1, 2, 3)]:
        tree.remove(tree.insert("", text))
    assert tree._roots == {}


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_common_prefix(one, other):
    n = common_prefix(one, other)
    assert one[:n] == other[:n]
    assert n == min(len(one), len(other)) or one[n] != other[n]
