from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mitmsec_addons.word_index import WordIndex

WORDS = st.text("abc|", min_size=1, max_size=6).map(str.encode)


@given(words=st.sets(WORDS), text=st.text("abc|", max_size=20).map(str.encode))
def test_it_is_what_looking_for_each_would_find(words: set[bytes], text: bytes) -> None:
    assert sorted(WordIndex([(word, word) for word in words]).within(text)) == sorted(
        one for one in words if one in text
    )
