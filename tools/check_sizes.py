#!/usr/bin/env python3
"""Fails when a file, a function or a parameter list is too long.

Limits: file 500 lines, header 250, function 70 lines (in kernel files 120), 6 parameters, 4
template parameters. Exceptions stand in tools/sizes_allow.txt, one a line: `path[:function]
reason`. `--self-test` runs the checker on snippets instead.

Functions are found with a brace parser rather than a compiler: comments, strings and preprocessor
lines are blanked, then every `{` whose statement so far looks like `name(...)` at namespace or
class level opens a function. Lambdas belong to the function around them; declarations and macros
are not measured. Good enough for code that clang-format has laid out.
"""
import pathlib
import re
import subprocess
import sys

MAX_FILE, MAX_HEADER, MAX_FUNCTION, MAX_KERNEL = 500, 250, 70, 120
MAX_PARAMETERS, MAX_TEMPLATE_PARAMETERS = 6, 4
KERNEL_FILE = re.compile(r"(_simd\.cc|_avx512bf16\.cc|\.cu|\.cuh)$")
NOISE = re.compile(
    r'R"(?P<tag>[^()\\\s]{0,16})\(.*?\)(?P=tag)"'        # raw string
    r'|"(?:\\.|[^"\\\n])*"'                              # string
    r"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'"              # character, not a digit separator
    r"|//[^\n]*|/\*.*?\*/"                               # comment
    r"|^[ \t]*#(?:\\\n|[^\n])*",                         # preprocessor line
    re.DOTALL | re.MULTILINE)
NOT_FUNCTIONS = {"if", "for", "while", "switch", "catch", "return", "sizeof", "alignas", "decltype",
                 "noexcept", "requires", "alignof", "static_assert", "defined"}


def blanked(text: str) -> str:
    """The text with comments, strings and preprocessor lines as spaces; lines stay in place."""
    return NOISE.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def matching(text: str, begin: int, pair: str) -> int:
    """Index behind the bracket that closes text[begin], or len(text)."""
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == pair[0]) - (text[i] == pair[1])
        if depth == 0:
            return i + 1
    return len(text)


def count_list(text: str) -> int:
    """Items of a comma-separated list; commas inside brackets don't count."""
    depth, items = 0, 1 if text.strip() not in ("", "void") else 0
    for i, c in enumerate(text):
        if c in "([{<":
            depth += 1
        elif c in ")]}" or (c == ">" and text[i - 1] != "-"):
            depth -= 1
        elif c == "," and depth == 0:
            items += 1
    return items


def signature(head: str):
    """(name, parameters, template parameters) of a statement head that opens a function body, or
    None. head is what stands between the last ; { } and the opening brace."""
    templates = 0
    head = head.strip()
    while match := re.match(r"template\s*<", head):
        end = matching(head, match.end() - 1, "<>")
        templates += count_list(head[match.end():end - 1])
        head = head[end:].strip()
    head = re.sub(r"\[\[.*?\]\]", "", head)
    match = re.search(r"(operator\s*(?:\(\s*\)|[^\s\w(]+|\w+)|~?[A-Za-z_]\w*)\s*\(", head)
    while match and match.group(1) in NOT_FUNCTIONS:
        match = re.compile(r"(~?[A-Za-z_]\w*)\s*\(").search(
            head, matching(head, match.end() - 1, "()"))
    if not match or re.match(r"(namespace|enum|union|return|do|else|case)\b", head) or \
            re.match(r"(struct|class)\b[^(]*$", head) or "=" in head[:match.start()]:
        return None
    end = matching(head, match.end() - 1, "()")
    return match.group(1), count_list(head[match.end():end - 1]), templates


def functions(text: str):
    """(name, first line, lines, parameters, template parameters) of every function body."""
    text = blanked(text)
    found, statement, i = [], 0, 0
    while i < len(text):
        c = text[i]
        if c == "(":  # default arguments may hold braces
            i = matching(text, i, "()")
            continue
        if c == "{":
            head = text[statement:i]
            parts = signature(head)
            if parts:
                end = matching(text, i, "{}")
                first = text.count("\n", 0, statement + len(head) - len(head.lstrip())) + 1
                last = text.count("\n", 0, end) + 1
                rest = re.match(r"\s*([,{])", text[end:])
                if not rest:  # else a brace initialiser in a constructor's list: the body follows
                    found.append((parts[0], first, last - first + 1, *parts[1:]))
                    statement = end
                i = end
                continue
            if re.search(r"(=|\breturn|,|[\w>\]])\s*$", head) and \
                    not re.search(r"\b(namespace|struct|class|enum|union|extern)\b", head):
                i = matching(text, i, "{}")  # an initialiser
                continue
            statement = i + 1
        elif c in ";}" or (c == ":" and re.search(r"\b(public|private|protected)\s*$",
                                                  text[statement:i])):
            statement = i + 1
        i += 1
    return found


def problems_of(name: str, text: str) -> list[tuple[str, str]]:
    """(key for the allow-list, message) of everything too long in one file."""
    lines = text.count("\n")
    limit = MAX_HEADER if name.endswith((".h", ".cuh")) else MAX_FILE
    found = [(name, f"{name}: {lines} lines, limit {limit}")] if lines > limit else []
    max_lines = MAX_KERNEL if KERNEL_FILE.search(name) else MAX_FUNCTION
    for function, first, length, parameters, templates in functions(text):
        for value, most, what in ((length, max_lines, "lines"),
                                  (parameters, MAX_PARAMETERS, "parameters"),
                                  (templates, MAX_TEMPLATE_PARAMETERS, "template parameters")):
            if value > most:
                found.append((f"{name}:{function}",
                              f"{name}:{first}: {function} has {value} {what}, limit {most}"))
    return found


def check(root: pathlib.Path) -> list[str]:
    allow_file = root / "tools" / "sizes_allow.txt"
    allowed, failures = set(), []
    for line in allow_file.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            key, _, reason = line.partition(" ")
            allowed.add(key)
            if not reason.strip():
                failures.append(f"tools/sizes_allow.txt: {key} has no reason")
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "*.cc", "*.h", "*.cu", "*.cuh"],
                            capture_output=True, text=True, check=True).stdout.split()
    used = set()
    for name in listed:
        for key, message in problems_of(name, (root / name).read_text(errors="replace")):
            used.add(key)
            if key not in allowed:
                failures.append(message)
    return failures + [f"tools/sizes_allow.txt: {key} is not needed" for key in allowed - used]


BODY = "  x();\n" * 71
SELF_TEST = [  # snippet, [(name, parameters, template parameters)] that must be found
    ("int f() { return 1; }", [("f", 0, 0)]),
    ("namespace a {\nvoid f(int a, std::map<int, int> b) {\n  if (a) {\n  }\n}\n}", [("f", 2, 0)]),
    ("struct S {\n  explicit S(int a) : a_{a}, b_(2) {}\n  int g() const noexcept { return a_; }\n"
     "  int a_ = 0;\n  int b_[2] = {1, 2};\n};", [("S", 1, 0), ("g", 0, 0)]),
    ("template <int N, typename T>\nT f(std::span<T, N> x) {\n  return [&](int a) { return x; }(1);\n}",
     [("f", 1, 2)]),
    ("int table[] = {f(1), f(2)};\nconst auto k = [] { return 1; }();\nint g(int);", []),
    ("void f() {  // a { in a comment\n  s = \"}{\"; c = '{';\n}\nvoid g() {}",
     [("f", 0, 0), ("g", 0, 0)]),
    ("bool operator==(const A& a, const B& b) { return true; }", [("operator==", 2, 0)]),
    ("class A {\n public:\n  void f() {}\n private:\n  int b;\n};", [("f", 0, 0)]),
    ("#define M(x) \\\n  void x() { y(); }\nvoid f(int a = g({1, 2}), int b = 3) {}", [("f", 2, 0)]),
    ("TEST(Suite, a_test) {\n  x();\n}", [("TEST", 2, 0)]),
    ("enum class E { kA, kB };\nstruct alignas(64) P {\n  int64_t n = 1'000'000;\n};\nvoid f() {}",
     [("f", 0, 0)]),
    ("void f() {\n" + BODY + "}", [("f", 0, 0)]),
]


def self_test() -> list[str]:
    failures = []
    for snippet, expected in SELF_TEST:
        found = [(name, p, t) for name, _, _, p, t in functions(snippet)]
        if found != expected:
            failures.append(f"self-test: {snippet!r}: found {found}, expected {expected}")
    long = "void f() {\n" + BODY + "}\n"
    many = "void f(int a, int b, int c, int d, int e, int g, int h) {}\n"
    for name, text, count in (("src/a.cc", long, 1), ("src/a_simd.cc", long, 0), ("a.cc", many, 1),
                              ("a.h", "\n" * 251, 1), ("a.cc", "\n" * 251, 0),
                              ("a.cc", "\n" * 501, 1)):
        if len(problems_of(name, text)) != count:
            failures.append(f"self-test: {name}: expected {count} problems in {text[:20]!r}...")
    return failures


if __name__ == "__main__":
    repository = pathlib.Path(__file__).resolve().parent.parent
    problems = self_test() if "--self-test" in sys.argv else check(repository)
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(1 if problems else 0)
