"""The sources that have a name: what each is, its licence, its checksum and where it is to be had."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Copy:
    """One file that holds a source: its path below QUATRAIN_DATA or the cache, what it must be, and where it is
    downloaded from (no address: it is found on disk or not at all)."""

    path: str
    sha256: str | None = None
    size: int | None = None
    url: str | None = None


@dataclass(frozen=True)
class Source:
    """A named text. `format` is how it is read, text, jsonl, alpaca, a format of `quatrain.text.formats`, or sqlite for
    databases; the copies hold the same content.

    `where` takes those rows alone whose columns have these values; `databases` is the source that questions ask.
    """

    name: str
    description: str
    licence: str
    format: str
    copies: tuple[Copy, ...]
    where: tuple[tuple[str, str], ...] = ()
    databases: str | None = None

    @property
    def path(self) -> str:
        """Where its first copy is below QUATRAIN_DATA."""
        return self.copies[0].path

    @property
    def size(self) -> int | None:
        """Bytes of its first copy, None where not known."""
        return self.copies[0].size

    @property
    def sha256(self) -> str | None:
        """Checksum of its first copy, None where not known."""
        return self.copies[0].sha256

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses it can be downloaded from."""
        return tuple(copy.url for copy in self.copies if copy.url is not None)


_GITHUB = "https://raw.githubusercontent.com/"
_PUBLIC_DOMAIN = "public domain in the USA"


def entries() -> Iterator[Source]:
    """Every source that has a name: texts, the data of tasks, then questions with the databases that they ask."""
    yield from _texts()
    yield from _tasks()
    yield from _questions()


def _texts() -> Iterator[Source]:
    yield Source(
        "gutenberg:1661",
        "The Adventures of Sherlock Holmes, A. Conan Doyle (1892), Project Gutenberg's text",
        f"{_PUBLIC_DOMAIN} (Project Gutenberg licence)",
        "text",
        (
            Copy(
                "text/sherlock_holmes_adventures.txt",
                "242ec73a70f0a03dcbe007e32038e7deeaee004aaec9a09a07fa322743440fa8",
                594_933,
                _GITHUB + "BurntSushi/rebar/HEAD/benchmarks/haystacks/sherlock.txt",
            ),
        ),
    )
    yield Source(
        "tinyshakespeare",
        "40,000 lines of Shakespeare's plays; usual split: first 90 % train, last 10 % validation",
        _PUBLIC_DOMAIN,
        "text",
        (
            Copy(
                "text/tinyshakespeare.txt",
                "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
                1_115_394,
                _GITHUB + "karpathy/char-rnn/HEAD/data/tinyshakespeare/input.txt",
            ),
        ),
    )
    yield Source(
        "the-verdict",
        "The Verdict, a short story by Edith Wharton (1908)",
        _PUBLIC_DOMAIN,
        "text",
        (
            Copy(
                "text/the-verdict.txt",
                "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
                20_479,
                _GITHUB + "rasbt/LLMs-from-scratch/HEAD/ch02/01_main-chapter-code/the-verdict.txt",
            ),
        ),
    )
    yield Source(
        "names",
        "32,033 given names, one a line, for character-level toy models",
        "MIT",
        "text",
        (
            Copy(
                "text/names.txt",
                "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
                228_145,
                _GITHUB + "karpathy/makemore/HEAD/names.txt",
            ),
        ),
    )
    yield Source(
        "british-novels",
        "24 British novels, 1740-1880 (Austen, Bronte, Dickens, Eliot, Fielding, ...), one book a line",
        _PUBLIC_DOMAIN,
        "jsonl",
        (
            Copy(
                "pretrain/british_novels.jsonl.gz",
                "9a899d126e09612defd81a93d1e447e4528a095bb27f7f5d5748d0510737240f",
                10_971_042,
            ),
        ),
    )
    yield Source(
        "tinystories-sample",
        "a sample of TinyStories, synthetic stories for children (Eldan and Li 2023)",
        "CDLA-Sharing-1.0",
        "text",
        (
            Copy(
                "pretrain/tinystories_sample.txt",
                "727e8b228375be3075114c20729c93ed6e81ae5d8fe7faf7cb54b304f0322d70",
                197_290,
                _GITHUB + "Niklas6/Mini_GPT/HEAD/tinystories.txt",
            ),
        ),
    )
    yield Source(
        "c4-sample",
        "300 documents of C4, web text (Raffel et al. 2020)",
        "ODC-BY",
        "jsonl",
        (
            Copy(
                "pretrain/c4_sample.jsonl.gz",
                "f29e5b493220ebd38b3cf524873546e1e316a9bd06415a50398643e34beec3b3",
                288_794,
            ),
        ),
    )
    yield Source(
        "wikipedia-sample",
        "plain text of 30 long English Wikipedia articles, one a line",
        "CC BY-SA",
        "text",
        (
            Copy(
                "pretrain/wikipedia_plain_sample.txt.gz",
                "c2949ac7550de5333fd4cf15b038cf74cb2dfe6546e523db6182ad0898b9389b",
                380_885,
            ),
        ),
    )
    wikitext = (
        ("valid", "3cdd8cb5bb349a05840c7c3bef9578d90d64df77e27e0c25c033ba9342757ee3", 373_475,
         "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8", 1_121_681),
        ("test", "688887879b4b526692cb2e423a516dcc5f6584a01fd3f33a8e164fbed2de8090", 410_944,
         "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0", 1_256_449),
    )  # fmt: skip
    for split, packed_sha, packed_size, sha, size in wikitext:
        yield Source(
            f"wikitext2-{split}",
            f"WikiText-2, {split} split, split into words, <unk> for rare ones (Merity et al. 2016)",
            "CC BY-SA",
            "text",
            (
                Copy(f"pretrain/wikitext2/{split}.txt.gz", packed_sha, packed_size),
                Copy(
                    f"pretrain/wikitext2/{split}.txt",
                    sha,
                    size,
                    _GITHUB + f"pytorch/examples/HEAD/word_language_model/data/wikitext-2/{split}.txt",
                ),
            ),
        )
    yield Source(
        "instructions",
        "1,100 short instructions with answers, of the book Build a Large Language Model (From Scratch)",
        "Apache-2.0",
        "alpaca",
        (
            Copy(
                "instruct/rasbt_instruction_data.json",
                "7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
                203_524,
                _GITHUB + "rasbt/LLMs-from-scratch/HEAD/ch07/01_main-chapter-code/instruction-data.json",
            ),
        ),
    )
    yield Source(
        "alpaca-4000",
        "4,000 rows of Stanford Alpaca",
        "CC BY-NC 4.0 (non-commercial)",
        "alpaca",
        (
            Copy(
                "instruct/alpaca_4000.jsonl.gz",
                "4eb1c556a0731b4c83b8822b683d650fa137e20789ece015601bc380fbb4747e",
                547_907,
            ),
        ),
    )
    yield Source(
        "polite-preferences",
        "the 1,100 instructions with a chosen (polite) and a rejected (impolite) answer",
        "Apache-2.0",
        "preference",
        (
            Copy(
                "preference/rasbt_instruction_data_with_preference.json",
                "305315abf14f65fa42c01a0877572f832606571c2a7d49f152ac1d758b16756e",
                386_968,
                _GITHUB + "rasbt/LLMs-from-scratch/HEAD/ch07/04_preference-tuning-with-dpo/"
                "instruction-data-with-preference.json",
            ),
        ),
    )


def _tasks() -> Iterator[Source]:
    """Data of tasks, a file each, where no copy is to be downloaded that is known to be the same."""
    sst2 = "SST-2, sentences of film reviews with their sentiment, 0 or 1 (Socher et al. 2013)"
    wnut = "WNUT-17, words of social media with their entities (Derczynski et al. 2017)"
    ewt = "Universal Dependencies English EWT, words with their parts of speech (Silveira et al. 2014)"
    squad = "a sample of SQuAD 1.1, questions on paragraphs of Wikipedia (Rajpurkar et al. 2016)"
    dialogsum = "DialogSum, dialogues with summaries (Chen et al. 2021)"
    captions = "Multi30k, captions of pictures, line by line as in its other languages (Elliott et al. 2016)"
    research, free, share = "free for research", "CC BY 4.0", "CC BY-SA 4.0"
    no_trade = "CC BY-NC-SA 4.0 (non-commercial)"
    rows = (
        ("sst2-train", f"{sst2}: train", research, "labelled",
         "sentiment/sst2/train.tsv", 720_259,
         "ec192f833a64da08f475488a77b0d0b47db47acd0f458bd18433fc793b569920"),
        ("sst2-dev", f"{sst2}: dev", research, "labelled",
         "sentiment/sst2/dev.tsv", 92_057,
         "eddea6b39e601dd4e7a672b53cc40fdf6019fa80522f351206c24340ca5d9359"),
        ("sst2-test", f"{sst2}: every other line of the test set", research, "labelled",
         "sentiment/sst2/test.tsv", 94_851,
         "0928195cb84c5acbf665aea16558f70f1f9e104c26bb79245ec0689780b2ca52"),
        ("movie-reviews", "1,600 whole film reviews with their sentiment (Pang and Lee 2004)", free, "labelled",
         "sentiment/movie_reviews.jsonl.gz", 2_409_989,
         "414462fcd7003292775e484404f04eca543fee07175a7869cb1c45e20317b0e3"),
        ("wnut17-train", f"{wnut}: train", free, "tagged",
         "tagging/wnut17/train.conll", 493_781,
         "731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5"),
        ("wnut17-dev", f"{wnut}: dev", free, "tagged",
         "tagging/wnut17/dev.conll", 114_749,
         "e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8"),
        ("wnut17-test", f"{wnut}: every other sentence of the test set", free, "tagged",
         "tagging/wnut17/test.conll", 95_900,
         "514a8199ede3a3c66463e615cdf636f02d6e7b02f759b6bea979e699b2a63c0e"),
        ("wikigold", "Wikigold, words of Wikipedia with their entities (Balasuriya et al. 2009)", free, "tagged",
         "tagging/wikigold.conll", 261_013,
         "1a5813d42aadfca7aa6e8f8e507e8cdd2ef488803ddee9f4b3c1acb06ed9243c"),
        ("ud-ewt-train", f"{ewt}: a part of train", share, "tagged",
         "tagging/ud_english_ewt/train.conllu.gz", 1_228_182,
         "f5c709ccf8b4bd267d4944c1a026245f2412cc4669d2442511f26b5f316ad935"),
        ("ud-ewt-dev", f"{ewt}: dev", share, "tagged",
         "tagging/ud_english_ewt/dev.conllu.gz", 334_223,
         "24656b4a407808e7b9e42959b2e39e18ae5580bfbf3b27938d6873dabaed8845"),
        ("ud-ewt-test", f"{ewt}: every other document of the test set", share, "tagged",
         "tagging/ud_english_ewt/test.conllu.gz", 167_466,
         "2fea84110181fb8395afff78c8ddda233d9848498fa360dde94f93b75c9ed480"),
        ("squad-sample-train", f"{squad}: train", share, "qa",
         "qa/squad_sample_train.json.gz", 390_808,
         "5da501aabe44932fe41d9790a788d7bd20299dd32e94dad8732ffd3fadd6aa84"),
        ("squad-sample-dev", f"{squad}: dev", share, "qa",
         "qa/squad_sample_dev.json.gz", 46_290,
         "8945bfdf38e7dbd4a65e08da34a0a2f443dd68e4ed2c20099bf52ea265b5b54b"),
        ("dialogsum-train", f"{dialogsum}: 8,000 of train", no_trade, "pair",
         "summarization/dialogsum/train.jsonl.gz", 2_419_842,
         "6d15e866c04ad3be4e8dd3de1b6f67a2d39ad81a9c450897f9592b1421b72906"),
        ("dialogsum-dev", f"{dialogsum}: dev", no_trade, "pair",
         "summarization/dialogsum/dev.jsonl.gz", 149_916,
         "40a9f0a3daf8dbd48376254737fd4b8e9b6a125da54642e9afa5882f76bd45a8"),
        ("dialogsum-test", f"{dialogsum}: half of the test set", no_trade, "pair",
         "summarization/dialogsum/test.jsonl.gz", 93_796,
         "8402deaa9a03fbb0242e5acb7f89b8538e93799808ec37026592c32ce7334c73"),
        ("multi30k-train.en", f"{captions}: train, en", "non-commercial research and education", "lines",
         "translation/multi30k/train.en.gz", 568_929,
         "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
        ("multi30k-train.de", f"{captions}: train, de", "non-commercial research and education", "lines",
         "translation/multi30k/train.de.gz", 637_044,
         "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6"),
        ("multi30k-train.fr", f"{captions}: train, fr", "non-commercial research and education", "lines",
         "translation/multi30k/train.fr.gz", 604_242,
         "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c"),
        ("multi30k-dev.en", f"{captions}: dev, en", "non-commercial research and education", "lines",
         "translation/multi30k/val.en.gz", 21_650,
         "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
        ("multi30k-dev.de", f"{captions}: dev, de", "non-commercial research and education", "lines",
         "translation/multi30k/val.de.gz", 24_681,
         "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a"),
        ("multi30k-dev.fr", f"{captions}: dev, fr", "non-commercial research and education", "lines",
         "translation/multi30k/val.fr.gz", 23_001,
         "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9"),
        ("multi30k-test.en", f"{captions}: test, en", "non-commercial research and education", "lines",
         "translation/multi30k/test_2016_flickr.en.gz", 21_077,
         "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9"),
        ("multi30k-test.de", f"{captions}: test, de", "non-commercial research and education", "lines",
         "translation/multi30k/test_2016_flickr.de.gz", 22_890,
         "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8"),
        ("multi30k-test.fr", f"{captions}: test, fr", "non-commercial research and education", "lines",
         "translation/multi30k/test_2016_flickr.fr.gz", 22_310,
         "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90"),
        ("tatoeba-eng-fra", "72,401 short English sentences with French ones, of Tatoeba", "CC BY 2.0 FR", "pair",
         "translation/tatoeba_eng_fra.tsv.gz", 1_860_439,
         "e2595686f41f896760647adb9f767fddf19e7c79fdf5d09bf3e3df507d641be5"),
    )  # fmt: skip
    for name, description, licence, format, path, size, sha256 in rows:
        yield Source(name, description, licence, format, (Copy(path, sha256, size),))


def _questions() -> Iterator[Source]:
    """Questions with SQL, and the databases that they ask."""
    spider, share = "Spider, questions with SQL on many databases (Yu et al. 2018)", "CC BY-SA 4.0"
    databases = Copy(
        "text2sql/spider/databases.zip",
        "195c0fc38aefa105d52b4e59b512255e0cd76ccb88385a69f129ff6f4dee65c7",
        4_667_031,
    )
    yield Source("spider-databases", "152 databases of Spider's train and dev sets", share, "sqlite", (databases,))
    files = (
        ("train", "7,000 questions on 140 databases", "train.jsonl.gz", 251_362,
         "69382978db924ec232bde68559c117e008dccce47a3dac0c43f93e02640b457a"),
        ("dev", "614 questions on 12 databases that train has not", "dev.jsonl", 153_791,
         "bbe16cfaeadb2ebfd0bfdb950136a784b5f731e68d7139900a115af24b916357"),
    )  # fmt: skip
    for split, what, name, size, sha256 in files:
        copy = Copy(f"text2sql/spider/{name}", sha256, size)
        description = f"{spider}: {what}"
        yield Source(f"spider-{split}", description, share, "sql", (copy,), databases="spider-databases")
    geoquery, research = "GeoQuery, questions on the geography of the USA", "free for research"
    database = Copy(
        "text2sql/geography/geography.sqlite",
        "98955372123cd9a8e761b00c2c67fbf221f1b8699927add538b53154c702dd3c",
        65_536,
    )
    yield Source("geoquery-database", f"{geoquery}: the database", research, "sqlite", (database,))
    questions = Copy(
        "text2sql/geography/questions.jsonl",
        "d172b6ecbacbda46b1daf248ca3f9ab444c6706d264418e1f4a4014325c7da9d",
        285_430,
    )
    splits = (
        ("train", "331 that both of its splits teach", "train", "train"),
        ("new-questions", "170 put in new words, whose queries train has too", "test", "train"),
        ("new-queries", "182 whose queries train has not", None, "test"),
    )
    for name, what, question, query in splits:
        where = (*((("question_split", question),) if question else ()), ("query_split", query))
        description = f"{geoquery}, with SQL (Zelle and Mooney 1996; splits of Finegan-Dollak et al. 2018): {what}"
        yield Source(
            f"geoquery-{name}", description, research, "sql", (questions,), where=where, databases="geoquery-database"
        )
