"""Texts whose token ids are compared with llama.cpp's. Fixed: a change here needs new reference files."""

PROSE = """The harbour master kept three lists. The first named every ship that had come in since the thaw, the second \
every ship that was owed, and the third, which he showed to nobody, the ships that would not come. On the morning \
of the ninth of April he crossed a name off the second list and did not write it on the first. "You could wait," \
said his daughter, who had brought him bread and 2 apples. "It's only been 41 days." He looked out over the grey \
water, where a single sail stood between the breakwater and the sky, and it wasn't the sail he knew. "A list is a \
promise," he said. "You can't keep a promise by hoping." She laughed at that, not unkindly, and put the bread on \
the sill. By noon the wind had turned to the south-west; by evening the sail had become a ship, and the ship had a \
name, and the name was on none of his lists at all. He took a clean sheet of paper and began a fourth one. There \
are things, he thought, that arrive without being owed, and someone ought to write them down as well."""

SHORT = [
    "", " ", "  ", "   ", "\n", "\n\n", "\t", " \n", "\n ", "\r\n", "\r", "a", " a", "a ", "  a", "a  b", "a\nb", "a \n b",
    "Hello", "Hello world", "Hello, world!", " Hello", "hello", "HELLO", "HeLLo wORLD", "don't", "I'm", "I'll", "we've",
    "they're", "he'd", "it's", "DON'T", "I'M", "'tis", "rock'n'roll", "''", "'s", " 's", "x's y's",
    "0", "1", "12", "123", "1234", "12345678901234567890", "3.14159", "1,000,000", "-42", "1e-9", "0x1F", "v1.2.3",
    "12:34:56", "2026-11-24", "$9.99", "50%", "a1b2c3", "R2D2", "x²", "½", "Ⅷ", "١٢٣", "१२३",
]

CODE = [
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; i++) {\n\tsum += a[i];\n}", "fn main() { println!(\"{}\", 1); }",
    "SELECT * FROM t WHERE id = 7;", "<div class=\"a\">text</div>", "{\"key\": [1, 2, {\"x\": null}]}", "a == b && c != d",
    "x->y->z", "std::vector<std::pair<int, int>> v;", "#include <stdio.h>", "// comment", "/* block */", "# heading",
    "```python\nprint('hi')\n```", "https://example.com/path?q=1&r=2#frag", "user@example.com", "C:\\Users\\x\\file.txt",
    "/usr/local/bin", "--flag=value", "$HOME/.bashrc", "snake_case_name", "camelCaseName", "PascalCase", "SCREAMING_CASE",
    "kebab-case-name", "a.b.c.d", "f(g(h(x)))", "!!!", "???", "...", "....", "-----", "=====", "*****", "<<>>", "(((", ")))",
    "\"quoted\"", "'single'", "`tick`", "~tilde~", "^caret^", "|pipe|", "a|b|c", "<|", "|>", "<|im", "im_end|>", "\\n", "\\u00e9",
    "if True:\n        pass\n    else:\n\t\tpass", "\t\tindented\n\t\t\tmore", "    four\n        eight\n", "a;b;c", "@decorator",
    "αβ = λx. x", "∀x ∈ ℝ: x² ≥ 0", "E = mc²", "∫ f(x) dx", "A → B ⇒ C",
]

WHITESPACE = [
    "a   b", "a    b", "a\t\tb", "a \t b", "   leading", "trailing   ", " \t \n \r\n ", "\n\n\n", "\n\n\n\n\n\n\n\n", "a\n\n\nb",
    "a\r\nb\r\n", "a\n\r\nb", "a\rb", " " * 17, " " * 64, "\t" * 9, "\n" * 33, "a" + " " * 40 + "b", "  \n  \n  ",
    "a\u00a0b", "a\u2003b", "a\u3000b", "a\u200bb", "a\u2028b", "a\u0085b", "\ufeffa", "a\u00adb", "x \u00a0 y", "\u00a0", "\u3000\u3000",
    "word \nword", "word  \nword", "word\n word", "end. \n\nNext", "tab\tend\t", "\v\f", "a\x00b", "\x01\x02", "a\x7fb", "\x1b[0m",
]

SCRIPTS = [
    "Grüße aus Köln", "naïve façade", "crème brûlée", "Ångström", "œuvre", "straße", "İstanbul", "Dvořák", "Łódź", "ÆØÅ æøå",
    "e\u0301", "n\u0303", "a\u0308\u0304", "\u0301", "Привет, мир!", "Война и мир", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم",
    "السَّلامُ", "שָׁלוֹם", "mixed עברית and English", "abc \u202exyz\u202c", "नमस्ते दुनिया", "தமிழ்", "বাংলা", "ไทย", "ภาษาไทย 123", "ລາວ", "မြန်မာ",
    "ქართული", "Հայերեն", "አማርኛ", "你好,世界", "今天天气很好。", "漢字とひらがなとカタカナ", "東京は2026年", "안녕하세요 세계", "한국어 텍스트", "ㄅㄆㄇ",
    "ＦＵＬＬ　ｗｉｄｔｈ １２３", "ﬁ ligature", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈", "𠀀𠀁", "\U0010ffff", "\ufffd", "\ue000",
    "🙂", "🙂🙂", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "☃", "a🙂b", " 🙂 ", "🙂\n🙂", "1️⃣", "♠♥♦♣", "©®™", "“quotes” ‘single’", "—–-", "…", "·•◦", "¿Qué? ¡Sí!",
]

SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nHello<|im_end|>\n", "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|>b", "<|im_end|><|im_end|>", " <|im_end|> ", "<|im_end|>\n\n", "<|im_ end|>", "<|IM_END|>", "<|im_end|", "|im_end|>", "<<|im_end|>>",
    "<repo_name>x<file_sep>y", "<filename>a.py<gh_stars>5", "<issue_start><issue_comment><issue_closed>", "<jupyter_code>1+1<jupyter_output>2<empty_output>",
    "<s>", "</s>", "<unk>", "<pad>", "[INST] x [/INST]", "<0x0A>", "▁a▁b", "Ġhello", "ĠĠ", "Ċ", "<bos>", "<|eot_id|>",
    "text with <|endoftext|> inside", "<|im_start|><|im_start|>assistant", "é<|im_end|>é", "🙂<|im_end|>🙂",
]

LONG = [PROSE, PROSE.upper(), PROSE.replace(" ", "  "), PROSE.replace(" ", "\n"), "".join(PROSE.split()), "ab" * 200, "a" * 300, "1234567890" * 20, "🙂" * 50, "漢字" * 60]

TEXTS = list(dict.fromkeys(SHORT + CODE + WHITESPACE + SCRIPTS + SPECIAL + LONG))
