"""Text that names of files and classes may have, and that a format may take for something else."""

ODD = [
    "a\rb", "a\nb", "a\r\nb", "\r", "\n", 'a "quoted" one', '"', "'", "''", "a,b", "a;b", "a\tb", "a|b", "a\\b", "\\n",
    " before", "after ", "\tbefore", "\nbefore", "after\n", "  \n  ", "NA", "N/A", "NaN", "nan", "null", "None", "none",
    "inf", ".inf", "-.Inf", "1e3", "1E+3", "-1e-3", "1.", ".5", "007", "0x1F", "0o17", "0b1", "1_000", "12:30",
    "1:2:3.5", "2024-01-01", "2001-12-14t21:59:43.10-05:00", "on", "off", "yes", "No", "y", "True", "~", "", "-", "- a",
    "---", "...", "=", "=1+1", "<<", "#a", "a #b", "a: b", "a:", ":", "? a", "?", "!a", "&a", "*a", "%a", "@a", "`a",
    "|", ">", "{}", "[]", "[a]", "{a: b}", "café", "cafe\u0301", "日本", "🐱", "\ufeffa", "a\x85b", "a\u2028b",
    "a\xa0b", "a\x00b", "\x1a", "\x7f", f"{'a' * 200} {'b' * 200}  c",
]  # fmt: skip
# As Python gives the name of a file in another encoding.
NOT_UNICODE = b"caf\xe9.png".decode(errors="surrogateescape")
