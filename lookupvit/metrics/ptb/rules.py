"""The rules of the Penn Treebank tokeniser: at each place the longest match wins, the earlier rule on a tie.

A rule may require what follows its token. That counts for the length of the match, but stays in the text. All patterns
are raw strings, so that `re` reads the escapes as they are written.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from lookupvit.metrics.ptb.chars import DIGITS, LETTERS, LINES, SPACES, SYMBOLS, UPPERCASE, WORD_LETTERS

# Before a capital and at the end of the text, these abbreviations also end the sentence: a full stop is added.
_STOPPING = r"""jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu thurs fri
ala ariz calif colo conn ct dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va vt wisc? wyo
inc cos? corp ltd plc rt bancorp bhd assn univ intl sys tel est ext sq jr sr bros (?:ed|ph)\.d esq blvd rd
etc al seq bldg"""
_STATES = "A(?i:z|rk) D(?i:el) I(?i:ll) L(?i:a) M(?i:ass|iss) O(?i:re) P(?i:a) T(?i:ex) W(?i:ash)"  # else plain words
# After these the sentence always goes on.
_LEADING = r"""mr mrs ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt ste?
ave pres lieut hon brig co?mdr pfc spc supts? det mt ft adj adv asst assoc ens insp mlle mme msgr sfc vs alex wm
jos cie a\.k\.a cf treas ph invt elec natl dept"""
_BEFORE_NUMBERS = "ca figs? prop nos? art bldg pp op"
# Words that begin a new sentence after an acronym.
_OPENERS = r"""About According Additionally After An A As At But Did During Earlier He Her Here How However If In
It Last Many More Mr\. Ms\. Now Once One Other Our She Since So Some Such That The Their Then There These They
This We When While What Who Why Yet You"""
_EXTENSIONS = """bat bmp c cgi class cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png ppt ps
py sql tar txt wav x xml zip"""


def _either(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


def _caseless(words: str) -> str:
    return f"(?i:{'|'.join(words.split())})"


L, D, LD = f"[{LETTERS}]", f"[{DIGITS}]", f"[{LETTERS}{DIGITS}]"
W = rf"(?:[{WORD_LETTERS}]|&[aeiouAEIOU](?i:acute|grave|uml);)"
WD = f"(?:{W}|{D})"
SPACE, BREAK = f"[{SPACES}]", f"[{SPACES}{LINES}]"
APOS = r"(?:['\x92\u2019]|(?i:&apos;))"
APOS_ALIKE = r"(?:['`\x91\x92\u2018\u2019\u201b]|(?i:&apos;))"
HYPHEN = r"[-_\u058a\u2010\u2011]"
COMMA = r"[,;:\u3001]"
WORD = rf"{W}{WD}*(?:[.!?]{W}{WD}*)*"
NUMBER = rf"[-+]?(?:{D}+(?:[.:,\xad\u066b\u066c]{D}+)*|(?:[.:,\xad\u066b\u066c]{D}+)+)"
_AMERICAN = r"(?i:canada|sino|korean|eu|japan|non)-(?i:u\.s)|(?i:u\.s\.-u\.(?:k|s\.s\.r))"
ACRONYM = rf"(?:[A-Za-z](?:\.[A-Za-z])*|{_AMERICAN})"
LONG_ACRONYM = rf"(?:[A-Za-z](?:\.[A-Za-z])+|{_AMERICAN})"
STOPPING = rf"(?:{_caseless(_STOPPING)}|{_either(_STATES)}|(?i:pp?t)[ye][sS]?)\."
LEADING = rf"(?:{_caseless(_LEADING)}|[Mm][ft]g|{ACRONYM})"
_NAME = r"[A-Za-z][A-Za-z0-9_:.-]*"
TAG = rf"<(?:[!?][A-Za-z-][^>\r\n]*|{_NAME}(?:[ ]+{_NAME}(?:[ ]*=[ ]*(?:'[^']*'|\"[^\"]*\"))?)*[ ]*/?|/{_NAME})[ ]*>"
CONTRACTED, NOT = rf"{APOS}(?:[msdMSD]|(?i:re|ve|ll))", rf"[nN]{APOS_ALIKE}[tT]"
COMPOUND = rf"(?:[dDoOlL]{APOS_ALIKE}{LD})?{LD}+(?:{HYPHEN}(?:[dDoOlL]{APOS_ALIKE}{LD})?{LD}+)*"
HYPHENATED = rf"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:{LONG_ACRONYM}\.|[A-Za-z0-9\xad]+))+"
SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"
PHONE = r"[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
URL_TAIL = r"""[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},-]"""
SMILEY = r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]"
EAST_SMILEY = r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)"
QUOTES = r"""(?:''|[`\x91-\x94\u2018-\u201f\u2039\u203a\xab\xbb]{1,2}|'|(?i:&apos;))"""


class Rule(NamedTuple):
    """One rule.

    Attributes:
        pattern: Group 1 is the token; the rest of the match is looked at, but stays in the text.
        text: Function from the characters in the caption to the token.
        starts: The characters that a match can start with.
        back: Number of characters at the end of group 1 that are read again.
        doubled: The characters that are read again belong to this token too: a full stop that ends an abbreviation and
            a sentence.
    """

    pattern: re.Pattern[str]
    text: Callable[[str], str]
    starts: re.Pattern[str]
    back: int
    doubled: bool


def _rule(
    starts: str,
    token: str,
    ahead: str = "",
    text: Callable[[str], str] = str,
    back: int = 0,
    doubled: bool = False,
) -> Rule:
    return Rule(re.compile(f"({token}){ahead}"), text, re.compile(f"[{starts}]"), back, doubled)


def _no_soft_hyphens(text: str) -> str:
    return text.replace("\xad", "") or "-"


def _ampersand(text: str) -> str:
    return re.sub("(?i)&amp;", "&", text)


def _hard_spaces(text: str) -> str:
    return text.replace(" ", "\xa0")


def _brackets(text: str) -> str:
    return text.replace("(", "-lrb-").replace(")", "-rrb-")


def _acronym(text: str) -> str:
    return text[:-1] if len(text) == 2 else text  # "I." is no abbreviation where a sentence may start after it


_MARKS = [
    (re.compile("(?i:&apos;)"), "'"),
    (re.compile('(?i:&quot;)|"'), "''"),
    (re.compile(r"[\x91\u2018\u201b\u2039]"), "`"),
    (re.compile(r"[\x92\u2019\u203a]"), "'"),
    (re.compile(r"[\x93\u201c\xab]"), "``"),
    (re.compile(r"[\x94\u201d\xbb]"), "''"),
]


def _quotes(text: str) -> str:
    for pattern, mark in _MARKS:
        text = pattern.sub(mark, text)
    return text


def _as(tokens: dict[str, str]) -> Callable[[str], str]:
    return lambda text: tokens.get(text, text)


def _always(token: str) -> Callable[[str], str]:
    return lambda text: token


_CURRENCY = {"\xa2": "cents", "\xa3": "#", "\x80": "$", "\xa4": "$", "\u20a0": "$", "\u20ac": "$"}
_FRACTIONS = {"\xbc": "1/4", "\xbd": "1/2", "\xbe": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
_BRACKETS = {"{": "-lcb-", "}": "-rcb-", "[": "-lsb-", "]": "-rsb-", "(": "-lrb-", ")": "-rrb-"}
_COINS = r"\x80\xa2-\xa5\u060b\u0e3f\u20a0\u20a4\u20ac\uffe0\uffe1\uffe5\uffe6"
_STOPS = r".\xa1\xbf\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002"
_QUOTE = r"'`&\x91-\x94\u2018-\u201f\u2039\u203a\xab\xbb"
_APOS = r"'&\x92\u2019"
_WORDS = WORD_LETTERS + "&"

RULES = [
    # words that become two tokens
    _rule("'cC", "(?i:cannot|'twas)", back=3),
    _rule("'gGlLwW", "(?i:gonna|gotta|lemme|gimme|wanna|'tis)", back=2),
    _rule("cCfF", r"[cC]\+\+|[cCfF]#"),
    # mark-up
    _rule("<", TAG, text=_hard_spaces),
    _rule(r"&\x96\x97\u2013-\u2015", r"(?i:&(?:md|mdash|ndash);)|[\x96\x97\u2013-\u2015]", text=_always("--")),
    _rule("&", "(?i:&amp;)", text=_always("&")),
    _rule("&", "(?i:&(?:ht|tl|ur|lr|qc|ql|qr|odq|cdq|#[0-9]+);)"),
    # words, with and without an apostrophe
    _rule(_WORDS, WORD, CONTRACTED, _no_soft_hyphens),
    _rule(r"a-zA-Z\xad", r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", NOT, _no_soft_hyphens),
    _rule(_WORDS, WORD, text=_no_soft_hyphens),
    _rule(_APOS, f"{APOS}[nN]{APOS}|{APOS}[nN]"),
    _rule("lLdDjJ", f"[lLdDjJ]{APOS}"),
    _rule("dDsSoO", f"(?i:dunkin|somethin|ol){APOS}"),
    _rule(_APOS, f"{APOS}(?:(?i:em|cause|till?)|[2-9]0[sS])"),
    _rule("A-HJ-XZn", f"[A-HJ-XZn]{APOS_ALIKE}{L}{L}+"),
    _rule(LETTERS, f"{L}+[aeiouyAEIOUY]{APOS_ALIKE}[aeiouA-Z]{L}*"),
    _rule("oO", f"[oO]{APOS_ALIKE}[oO]"),
    _rule("cCnNeEsSlL", r"(?i:cont'd\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l)"),
    _rule("yY", f"[yY]{APOS}", L),
    # the web
    _rule("hH", r"""(?i:https?://)[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},-]"""),
    _rule("wW", rf"""(?i:www\.)(?:[^ \t\n\f\r"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}(?:/{URL_TAIL})?"""),
    _rule(r"\x00-\uffff", rf"""(?:[^ \t\n\f\r"`'<>|.!?(){{}},\--_$]+\.)+(?i:com|net|org|edu)(?:/{URL_TAIL})?"""),
    _rule(
        "a-zA-Z0-9<&",
        r"""(?:(?i:&lt;)|<)?[a-zA-Z0-9][^ \t\n\f\r"<>|()\xa0{}]*@"""
        r"""(?:[^ \t\n\f\r"<>|(){}.\xa0]+\.)*[^ \t\n\f\r"<>|(){}.\xa0]+(?:(?i:&gt;)|>)?""",
    ),
    _rule("@#", f"@[a-zA-Z_][a-zA-Z_0-9]*|#{W}+"),
    _rule(_APOS, CONTRACTED, "[^A-Za-z]", _quotes),
    _rule("nN", NOT, "[^A-Za-z]", _quotes),
    # numbers
    _rule(DIGITS, rf"{D}{{1,2}}[-/]{D}{{1,2}}[-/]{D}{{2,4}}"),
    _rule(DIGITS + r"+.:,\xad\u066b\u066c-", NUMBER, text=_no_soft_hyphens),
    _rule(
        r"\u2070-\u208e\xb9\xb2\xb3",
        r"[\u207a\u207b\u208a\u208b]?(?:[\u2070\xb9\xb2\xb3\u2074-\u2079]+|[\u2080-\u2089]+)",
    ),
    _rule(DIGITS, rf"(?:{D}{{1,4}}[- \xa0])?{D}{{1,4}}(?:\\?/|\u2044){D}{{1,4}}", text=_hard_spaces),
    _rule(r"\xbc-\xbe\u2153-\u215e", r"[\xbc-\xbe\u2153-\u215e]", text=_as(_FRACTIONS)),
    _rule(
        "-cCpPaAsS",
        rf"(?i:-(?:rrb|lrb|rcb|lcb|rsb|lsb)-|c\.d\.s|pro-|anti-|s(?:&|&amp;)(?:p-500|ls)|cap{APOS}n|c{APOS}est)",
        text=_ampersand,
    ),
    _rule("a-zA-Z0-9", SLASHED),
    _rule("A-Z$#", r"[A-Z]*\$|#"),
    _rule(_COINS, f"[{_COINS}]", text=_as(_CURRENCY)),
    # abbreviations
    _rule("a-zA-Z", rf"{ACRONYM}\.", f"{BREAK}+(?:{_either(_OPENERS)}|{TAG}){BREAK}", _acronym, 1, True),
    _rule("a-zA-Z", rf"{_caseless(_BEFORE_NUMBERS)}\.", f"{BREAK}?{D}"),
    _rule("pPcC", r"(?:[pP][tT][eyEY]|[cC][oO])\.", f"{SPACE}(?i:ltd|lim)"),
    _rule("a-zA-Z", STOPPING, f"{BREAK}(?:{BREAK}|[{UPPERCASE}]|{TAG})", back=1, doubled=True),
    _rule("a-zA-Z", STOPPING, r"[\x00-\uffff][\x00-\uffff]"),
    _rule("a-zA-Z", STOPPING, back=1, doubled=True),
    _rule("a-zA-Z", rf"{LEADING}\."),
    _rule("a-zA-Z", LEADING, SPACE),
    _rule("a-zA-Z", ACRONYM, BREAK),
    _rule(_APOS, f"{APOS}[0-9][0-9]", BREAK),
    _rule(_WORDS + DIGITS, rf"{WD}+(?:\.{WD}+)*\.{_caseless(_EXTENSIONS)}", f"(?:{BREAK}|[.?!,])"),
    _rule(_WORDS, rf"{WORD}\.", COMMA, _no_soft_hyphens),
    _rule(
        "(+0-9",
        rf"\([0-9]{{2,3}}\)[ \xa0]?{PHONE}|\+{{0,2}}(?:[0-9]{{2,4}}[- \xa0])?[0-9]{{2,4}}[- \xa0]{PHONE}",
        text=lambda text: _brackets(_hard_spaces(text)),
    ),
    _rule("+0-9", r"(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}"),
    # marks
    _rule('"&', '"|(?i:&quot;)', "[A-Za-z0-9$]", _always("``")),
    _rule('"&', '"|(?i:&quot;)', text=_always("''")),
    _rule("<&", "<|(?i:&lt;)", text=_always("<")),
    _rule(">&", ">|(?i:&gt;)", text=_always(">")),
    _rule("<>:;=", SMILEY, "[^A-Za-z0-9]", _brackets),
    _rule("-^x=~<>'(", EAST_SMILEY, text=_brackets),
    _rule(r"{}()\[\]", r"[{}()\[\]]", text=_as(_BRACKETS)),
    _rule("-", "-+", text=lambda text: "--" if 3 <= len(text) <= 4 else text),
    _rule(r".\x85\u2026", r"\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85\u2026]", text=_always("...")),
    _rule("@#_", "@+|#+|_+"),
    _rule(r"*\\", r"\*+|(?:\\\*){1,3}"),
    _rule(COMMA[1:-1], COMMA),
    _rule("?!", "[?!]+"),
    _rule(_STOPS, f"[{_STOPS}]"),
    _rule("=/", "[=/]"),
    # compounds
    _rule("a-zA-Z0-9", HYPHENATED, text=_no_soft_hyphens),
    _rule("a-zA-Z0-9", rf"{HYPHENATED}\.", COMMA, _no_soft_hyphens),
    _rule(LETTERS + DIGITS, rf"{COMPOUND}\.", COMMA),
    _rule(LETTERS + DIGITS, COMPOUND),
    _rule("A-Z", "[A-Z]+(?:(?:[+&]|(?i:&amp;))[A-Z]+)+", text=_ampersand),
    _rule("'", "'", r"[A-Za-z][^ \t\n\r\xa0]", _always("`")),
    _rule(_QUOTE, QUOTES, text=_quotes),
    _rule(_APOS, CONTRACTED, text=_quotes),
    _rule("nN", NOT, text=_quotes),
    _rule("<>", "<<|>>"),
    _rule(SYMBOLS, f"[{SYMBOLS}]"),
    _rule(SPACES, f"{SPACE}+|(?i:&nbsp;)", text=_always("")),
    _rule("&", "(?i:&nbsp;)", text=_always("")),
]
