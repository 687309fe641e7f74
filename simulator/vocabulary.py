"""Word lists of the synthetic network: frequent real words first, then invented ones, in several scripts.

Word frequencies follow Zipf's law by rank. The invented words are built from syllables of the language, so that letter statistics
(and with them compression and text search) resemble real posts without copying anybody's text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Script:
    """How the words of one language are made. `share` is the language's share of posts, `glue` stands between words."""

    tag: str
    share: float
    glue: str
    common: str
    onsets: str
    vowels: str
    codas: str
    words: int = 9000
    syllables: tuple[int, int] = (1, 4)


@dataclass(frozen=True)
class Vocabulary:
    """Words of one language by falling frequency; `widths` are their UTF-8 lengths."""

    tag: str
    share: float
    glue: bytes
    words: tuple[bytes, ...]
    widths: tuple[int, ...]
    mean_width: float


_LATIN = "b c d f g h j k l m n p r s t v w st tr pr ch sh br gr pl cl"
_SCRIPTS = (
    Script(
        "en",
        0.47,
        " ",
        "the to and a of I is in it that you for on this with my be are have not but was just so like they we at me all if"
        " what can do your one or no as people about up out from when it's more don't get time how new who an there by love"
        " their has good would know think really see now i'm he will go than them today some day been because could why right",
        _LATIN,
        "a e i o u ea ou ai",
        " n s t r l ng d ck m",
        syllables=(1, 3),
    ),
    Script(
        "ja",
        0.16,
        "",
        "の は が を に で と も た て です ます した から まで ない ある いる こと これ それ 私 今日 人 日 何 よ ね な か い さ"
        " そう だ って けど でも すごい 見 行 思 好き 楽しい 今 時間 ありがとう おはよう 絵 描 配信 明日",
        "か き く け こ さ し す せ そ た ち つ て と な に ぬ は ひ ふ ま み む め も や ゆ よ ら り る れ ろ"
        " 山 川 空 花 音 色 光 風 本 "
        "カ キ ク コ サ シ ス タ チ ト ナ ニ ハ フ マ ミ メ ラ リ ル ロ 東 京 大 学 新 話 声 夜 朝 海",
        "ん い う あ ー っ",
        " ",
        words=7000,
        syllables=(1, 3),
    ),
    Script(
        "pt",
        0.13,
        " ",
        "de que e o a não eu é um uma com do da pra em se mas mais por muito os as tem como no na meu minha você isso só gente"
        " hoje bom dia já foi ser ele ela vai quando todo tudo vou aqui sobre até",
        "b c d f g l m n p r s t v nh lh tr br",
        "a e i o u ão ei ou ia",
        " s r m l",
        syllables=(2, 4),
    ),
    Script(
        "de",
        0.06,
        " ",
        "der die und ich das ist nicht in zu es ein mit den auf sich auch für so von man wie aber noch eine dem wir war wenn nur"
        " schon mir mal hat sie oder kann was heute einfach immer mehr",
        "b d f g h k l m n r s t w sch st z kr gr",
        "a e i o u ä ö ü ei au ie",
        " n r t l ng ch s",
        syllables=(2, 4),
    ),
    Script(
        "es",
        0.05,
        " ",
        "de que la el en y a no los se un por con una lo es para las me del mi yo pero más si al como muy hoy ya todo esto está"
        " hay gracias cuando bien porque día",
        "b c d f g j l m n ñ p r s t v ll rr",
        "a e i o u ia ie ue",
        " n s r l",
        syllables=(2, 4),
    ),
    Script(
        "fr",
        0.04,
        " ",
        "de la le et les des en un une est que pas pour je qui dans sur avec plus ce il on au mais ça c'est du tout fait bien"
        " comme si très nous vous merci bonjour",
        "b c d f g j l m n p r s t v ch qu",
        "a e i o u é è ou eau oi",
        " n s r t",
        syllables=(2, 4),
    ),
    Script(
        "ko",
        0.03,
        " ",
        "이 그 저 나 너 우리 오늘 진짜 너무 정말 좋아 안 못 더 잘 또 다 왜 뭐 수 것 거 한 하는 있는 없는 같아 감사 사랑",
        "가 나 다 라 마 바 사 아 자 차 카 타 파 하 고 노 도 로 모 보 소 오 조 기 니 디 리 미 비 시 이 지",
        "은 는 을 를 에 의 와 도 만 서",
        " 요 네 지",
        words=5000,
        syllables=(1, 2),
    ),
    Script(
        "ru",
        0.025,
        " ",
        "и в не на я что с а это как у но все то по за он так же вы мы да ты от бы меня мне еще уже если нет только",
        "б в г д ж з к л м н п р с т х ц ч ш ст пр",
        "а е и о у ы я ю ё",
        " н т й м л в",
        syllables=(2, 4),
    ),
    Script(
        "ar",
        0.015,
        " ",
        "في من على ما لا أن هذا إلى كل يا مع هو أنا عن كان الله الحب اليوم بعد قبل شيء الناس",
        "ب ت ث ج ح خ د ر ز س ش ص ط ع غ ف ق ك ل م ن ه",
        "ا و ي ة",
        " ن ر م",
        words=5000,
        syllables=(2, 4),
    ),
    Script(
        "tr",
        0.01,
        " ",
        "bir ve bu da de çok için ne ben ama gibi var daha o kadar her mi sen yok ki bugün şey iyi",
        "b c ç d f g h k l m n p r s ş t v y z",
        "a e ı i o ö u ü",
        " n r k l m",
        syllables=(2, 4),
    ),
    Script(
        "zh",
        0.01,
        "",
        "的 了 是 我 不 在 人 有 这 他 就 都 一 上 也 很 到 说 要 去 你 会 着 没有 看 好 自己 今天",
        "天 地 生 中 国 学 家 年 时 行 心 情 电 影 书 路 水 火 木 金 土 春 夏 秋 冬 爱 梦 想 笑 走",
        "们 子 头 儿 者",
        " 吗 呢 吧",
        words=4000,
        syllables=(1, 2),
    ),
)
EMOJI = "😂 ❤️ 😭 🥰 🔥 ✨ 😅 🙏 👍 🎉 💜 🤔 😍 👀 🥺 😊 💀 🌸 🦋 🐈 ☕ 🌧️ 🏳️‍🌈 👩‍💻 🎶 📷 🍁 💙 🫶 ⚽".split()  # noqa: SIM905 (readable)
# Pieces of JSON text with characters that need escaping, by the text they stand for. `<>&` are escaped by the v2 software.
PUNCTUATION = tuple(
    (text.encode(), len(text.encode().decode("unicode_escape").encode()))
    for text in (
        ".",
        ".",
        ".",
        ".",
        ",",
        ",",
        "!",
        "!",
        "?",
        "...",
        "\\n\\n",
        "\\n",
        ":",
        " -",
        " \\u0026",
        " \\u003e",
        " \\u003c3",
        '\\"',
    )
)


@cache
def build_vocabularies() -> tuple[Vocabulary, ...]:
    """All languages, always the same ones; built once in a process (a third of a second)."""
    draw = random.Random("vocabulary")
    return tuple(_build(script, draw) for script in _SCRIPTS)


def _build(script: Script, draw: random.Random) -> Vocabulary:
    words = list(dict.fromkeys(script.common.split()))
    known = set(words)
    onsets, vowels, codas = script.onsets.split(), script.vowels.split(), script.codas.split(" ")
    while len(words) < script.words:
        count = draw.randint(*script.syllables)
        word = "".join(
            draw.choice(onsets) + draw.choice(vowels) + (draw.choice(codas) if draw.random() < 0.4 else "")
            for _ in range(count)
        )
        if word in known:
            word += draw.choice(vowels)
            if word in known:
                continue
        known.add(word)
        words.append(word)
    encoded = tuple(word.encode() for word in words)
    widths = tuple(len(word) for word in encoded)
    weights = [1.0 / (rank + 2.7) for rank in range(len(words))]
    mean = sum(width * weight for width, weight in zip(widths, weights, strict=True)) / sum(weights)
    return Vocabulary(script.tag, script.share, script.glue.encode(), encoded, widths, mean)
