"""The characters that the Penn Treebank tokeniser takes as letters, digits, symbols and spaces.

It knows the Basic Multilingual Plane of Unicode 6.0. Characters that no rule names are dropped.
"""

import unicodedata

# Letters of later versions of Unicode: they are dropped like all unknown characters.
_TOO_NEW = """37f 528-52f 560 588 5ef 860-86a 870-887 889-88f 8a1 8ad-8c9 978 980 9fc af9 c34 c5a c5c-c5d c80
cdc-cdd d04 d54-d56 d5f e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac 13f5 13f8-13fd 16f1-16f8 170d 171f 1878 191d-191e
19b0-19c0 19c8-19c9 1b4c 1c80-1c8a 1c90-1cba 1cbd-1cbf 1cf2-1cf3 1cfa 2c2f 2c5f 312e-312f 31bb-31bf 4db6-4dbf
9fcd-9fff a698-a69d a78f a794-a79f a7ab-a7f7 a8fd-a8fe a9e0-a9e4 a9e6-a9ef a9fa-a9fe aa7e-aa7f ab30-ab5a ab5c-ab69
ab70-abbf"""
_DIGITS = """30-39 660-669 6f0-6f9 7c0-7c9 966-96f 9e6-9ef a66-a6f ae6-aef b66-b6f be6-bef c66-c6f ce6-cef d66-d6f
e50-e59 ed0-ed9 f20-f29 1040-1049 1090-1099 17e0-17e9 1810-1819 1946-194f 19d0-19d9 1a80-1a89 1a90-1a99 1b50-1b59
1bb0-1bb9 1c40-1c49 1c50-1c59 a620-a629 a8d0-a8d9 a900-a909 a9d0-a9d9 aa50-aa59 abf0-abf9 ff10-ff19"""
# Accents and marks: they belong to a word, but not to a hyphenated one.
_MARKS = """ad 2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2
5c4-5c5 5c7 615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e
951-955 962-963 981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82
bbe-bc2 bc6-bc8 bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd"""
# Each of these is a token of its own.
_SYMBOLS = """25 26 2b 5c 5e 7c 7e a6-a9 ac ae-b4 b6-b9 d7 f7 387 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60a 60c 614
61b 61e 66a 66d 703-70d 7f6-7f8 964-965 e4f 1fbd 2016-2017 2020-2023 2030-2038 203b 203e-2042 2044 207a-207e
208a-208e 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 2129 212e 213a-213b 2140-2144 214a-214d
214f 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 ff3b-ff40 ff5b-ff65"""


def _numbers(ranges: str) -> set[int]:
    pairs = [part.partition("-") for part in ranges.split()]
    return {code for low, _, high in pairs for code in range(int(low, 16), int(high or low, 16) + 1)}


def _letters() -> set[int]:
    new = _numbers(_TOO_NEW)
    known = {code for code in range(0x10000) if unicodedata.category(chr(code))[0] == "L"} - new
    return known | {0x1885, 0x1886}  # letters in Unicode 6.0, marks in later versions


def _inside(codes: set[int]) -> str:
    """The character class of a regular expression that matches one of these characters, without its brackets."""
    ordered, parts = sorted(codes), []
    for code in ordered:
        if parts and parts[-1][1] == code - 1:
            parts[-1][1] = code
        else:
            parts.append([code, code])
    return "".join(f"\\u{low:04x}" if low == high else f"\\u{low:04x}-\\u{high:04x}" for low, high in parts)


LETTERS = _inside(_letters())
UPPERCASE = _inside({code for code in _letters() if chr(code).isupper()})
WORD_LETTERS = LETTERS + _inside(_numbers(_MARKS))
DIGITS = _inside(_numbers(_DIGITS))
SYMBOLS = _inside(_numbers(_SYMBOLS))
SPACES = r" \t\xa0\u2000-\u200a\u3000"
LINES = r"\r\n\u2028\u2029\x0b\x0c\x85"
