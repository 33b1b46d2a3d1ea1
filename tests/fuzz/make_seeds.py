"""Writes the seeds of fuzzers: indexes, archives and texts that have something of everything.

    python tests/fuzz/make_seeds.py

Run it again when the format of indexes changes.
"""

import gzip
import stat
import struct
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import tarbytes as tb  # noqa: E402
from stack_model import KEY, Inode, Layer, directory, layer_bytes, lower_link, regular  # noqa: E402

from layerstore._core import index as ix  # noqa: E402
from layerstore._core.index import Index, merge  # noqa: E402

LINKED = regular(b"linked")
WHITEOUT = Inode(flags=ix.WHITEOUT)
LAYERS: list[Layer] = [
    {
        (): directory(),
        (b"a",): regular(b"some"),
        (b"d",): directory(mtime_ns=5, xattrs={b"user.n": b"v", b"trusted.m": b""}),
        (b"d", b"e"): directory(uid=7),
        (b"d", b"e", b"f"): LINKED,
        (b"d", b"g"): LINKED,
        (b"device",): Inode(mode=stat.S_IFCHR | 0o600, rdev=(1, 3)),
        (b"empty",): regular(b""),
        (b"s",): Inode(mode=stat.S_IFLNK | 0o777, target=b"d/e"),
    },
    {
        (): directory(flags=ix.IMPLIED),
        (b"a",): WHITEOUT,
        (b"d",): directory(flags=ix.OPAQUE),
        (b"d", b"e"): directory(flags=ix.IMPLIED),
        (b"d", b"e", b"new"): regular(b"some"),
        (b"link",): lower_link(b"d/g"),
        (b"s",): directory(),
    },
    {(): directory(), (b"d",): regular(b"a file"), (b"again",): lower_link(b"link"), (b"link",): WHITEOUT},
]

EXTENTS = [(0, 2), (5, 1), (10, 3), (20, 1), (30, 1)]
ARCHIVES = {
    "posix": [
        tb.directory(b"d/"),
        tb.header(b"f", size=3, uid=7, gid=8, mtime=9, prefix=b"d/e") + tb.padded(b"abc"),
        tb.symlink(b"s", b"d/f"),
        tb.hardlink(b"h", b"d/f"),
        tb.header(b"c", type=b"3", device=(1, 3)),
        tb.header(b"b", type=b"4", device=(259, 1 << 20)),
        tb.header(b"p", type=b"6"),
    ],
    "old": [tb.member(b"v7", b"x", magic=tb.V7), tb.member(b"also", b"y", type=b"\0")],
    "gnu": [
        tb.header(b"volume", type=b"V", magic=tb.GNU),
        tb.gnu_long(b"n" * 99 + b"/" + b"m" * 99)
        + tb.header(b"n", size=tb.base256(1, 12), magic=tb.GNU)
        + tb.padded(b"z"),
        tb.gnu_long(b"t" * 120, type=b"K") + tb.header(b"s", type=b"2", mtime=-5, magic=tb.GNU),
        tb.header(b"owned", uid=1 << 31, gid=(1 << 32) - 1, magic=tb.GNU),
    ],
    "pax": [
        tb.pax({b"comment": b"c", b"gid": b"5"}, type=b"g"),
        tb.pax({b"path": b"p" * 90 + b"/q", b"uid": b"4000000000", b"size": b"4", b"mtime": b"-1.000000001"})
        + tb.header(b"p")
        + tb.padded(b"data"),
        tb.pax({b"linkpath": b"l" * 110, b"mtime": b"1.5", b"path": b""}) + tb.symlink(b"s", b"x"),
        tb.pax([(b"SCHILY.xattr.user.b", b"2"), (b"SCHILY.xattr.user.a", b"1\0"), (b"SCHILY.xattr.user.b", b"")])
        + tb.member(b"x", b"y"),
    ],
    "sparse-old": [tb.sparse_old(b"s", EXTENTS, 40, b"abcdefgh"), tb.sparse_old(b"t", EXTENTS[:2], 40, b"abc")],
    "sparse-long": [tb.sparse_old(b"s", [(2 * i, 1) for i in range(26)], 60, b"abcdefghijklmnopqrstuvwxyz")],
    "sparse-0.0": [tb.sparse_00(b"s", EXTENTS, 40, b"abcdefgh")],
    "sparse-0.1": [tb.sparse_01(b"s", EXTENTS, 40, b"abcdefgh"), tb.member(b"f", b"x")],
    "sparse-1.0": [tb.sparse_10(b"s", EXTENTS, 40, b"abcdefgh"), tb.sparse_10(b"empty", [], 40, b"")],
}

CONFIG = (
    b'{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Cmd":["x"]},'
    b'"history":[{"created":"x"},{"empty_layer":true}],"rootfs":{"type":"layers","diff_ids":["sha256:%064d"]}}'
) % 0
LAYER = b'{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","size":7,"digest":"sha256:%064d"}' % 0
CONFIG_TYPE = b'"mediaType":"application/vnd.oci.image.config.v1+json"'
MANIFEST = b'{"config":{%s,"size":#0,"digest":"@0"},"layers":[%s]}' % (CONFIG_TYPE, LAYER)
LAYOUT_INDEX = (
    b'{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":#1,"digest":"@1",'
    b'"annotations":{"org.opencontainers.image.ref.name":"a:b"},"platform":{"os":"linux"}}]}'
)
DOCKER_INDEX = b'[{"Config":"c0","RepoTags":["a:b"],"Layers":["l.tar"]}]'
DOCKER_ARCHIVE = tb.archive(
    tb.member(b"manifest.json", DOCKER_INDEX), tb.member(b"c0", CONFIG), tb.symlink(b"l.tar", b"l/l.tar")
)
DOCKERFILE = b"""# syntax=x
# escape=\\
ARG V=1
FROM --platform=linux/amd64 a:$V AS one
RUN --mount=type=cache,target=/c <<END cat
 a $V
END
COPY --from=one --chown=1:2 a* "b c" /d/
HEALTHCHECK --interval=1m30s CMD x || \\
  exit 1
ONBUILD RUN x
"""
CHANGES = b"""ENV A=b C="d $A"
LABEL k='v'
EXPOSE 80-81/tcp
VOLUME ["/v"]
WORKDIR x/${A:-y}
STOPSIGNAL SIGTERM
CMD ["a","b"]
ENTRYPOINT x
"""
KEEPERS = (
    b'{"auths":{"docker.io":{"auth":"dTpw"},"r.example.com:5000":{"identitytoken":"t"}},'
    b'"credHelpers":{"docker.io/a":"h"},"credsStore":"s","Username":"u","Secret":"s"}'
)
CHUNK_AVERAGES = (0, 6, 7, 16)
"""Logarithms to add to 8: cuts of up to 16 bits, of 17 and more in the strict part, of 22 in all."""
# By the parser that the first byte of an input chooses.
TEXTS = {
    "fuzz_build": [
        DOCKERFILE,
        b'a\\ b "$A" ${B:-${A:+x}} ${A#a*} ${A%%?e} ${B//b/c} ${B/*/} ${EMPTY?no} K=v',
        b'{"Env":["A=b"],"Labels":{"a":"b"},"ExposedPorts":{},"WorkingDir":"/"}\n' + CHANGES,
        b"# no\n**/x*/[a-c]?\n!a/**/y\n*.b\0q/xx/bz",
        b"a*b[^a-c]\\?*?c\0axbd?yc",
    ],
    "fuzz_registry": [
        b"r.example.com:5000/a/b:c@sha256:" + b"0" * 64,
        b'Bearer realm="https://a/t",service="a\\"b",scope="x:y:pull", Basic abc=, Basic realm=x',
        b"Fri, 31 Dec 1999 23:59:59 GMT",
        b'{"errors":[{"code":"DENIED","message":"no"}],"token":"abc","expires_in":60}',
        KEEPERS,
    ],
    "fuzz_images": [
        b"\n".join((CONFIG, MANIFEST, LAYOUT_INDEX)),
        CONFIG,
        MANIFEST.replace(b"#0", b"5").replace(b"@0", b"sha256:" + b"0" * 64),
        DOCKER_ARCHIVE,
        tb.archive(*ARCHIVES["pax"], *ARCHIVES["posix"]),
        b"root:x:0:0::/root:/bin/sh\nbob:x:1000:99::/home/bob:\0staff:x:50:bob,x\n\0bob:staff",
        b"\7" + gzip.compress(b"some bytes", mtime=0) + gzip.compress(b"more", mtime=0),
    ],
    "fuzz_files": [
        b"\0\0\x03\0\0\0abc\x01\x02\x02\0\0\0" + struct.pack("<4Q", 0, 1, 1, 1),
        struct.pack("<HI12x", 512, 1) + b"content".ljust(512, b"\0") + struct.pack("<QQ32x", 0, 7),
        b"\1\2\1"
        + struct.pack("<QIII20x", 72, 16, 16, 0)
        + struct.pack("<32xQ8xIIII", 7, 0, 0, 7, 0xFFFFFFFF)
        + struct.pack("<32xQ8xIIII", 20, 0, 0, 16, 0)
        + bytes(32)
        + struct.pack("<IIB", 9, 4, 0)
        + b"between",
    ],
}


def half_of_a_cut(number: int, wanted: int) -> bytes:
    """16 bytes of which the hash of csrc/hash/chunker.h is `wanted`: the last one makes it so."""
    half, hashed = number.to_bytes(15, "big"), 0
    for byte in (*half, 0):
        hashed = hashed << 1 ^ hashed ^ byte
        hashed ^= 0x11B * (hashed >> 8)
    return half + bytes([hashed ^ wanted])


def main() -> None:
    layers = [bytes(layer_bytes(layer)) for layer in LAYERS]
    chain = bytes(merge([Index(layer) for layer in layers], KEY))
    for number, index in enumerate((*layers, chain)):
        (HERE / "fuzz_index" / f"{number}").write_bytes(b"\0" + index)
    (HERE / "fuzz_erofs" / "chain").write_bytes(b"\0" + chain)
    # A pack of 64 KiB with a slot in its first block and one in its ninth.
    slots = bytes([0, 0, 0, 0, 0, 5]) + bytes([0, 0, 0, 0, 129, 200])
    (HERE / "fuzz_erofs" / "pack").write_bytes(b"\2" + (7).to_bytes(4, "big") + (1 << 16).to_bytes(6, "big") + slots)
    parts = [len(layer).to_bytes(2, "little") + layer for layer in layers]
    (HERE / "fuzz_merge" / "layers").write_bytes(b"".join(parts))
    (HERE / "fuzz_merge" / "twice").write_bytes(b"".join(parts[:2] * 2))
    (HERE / "fuzz_merge" / "chain").write_bytes(len(chain).to_bytes(2, "little") + chain + parts[1])
    for fuzzer, texts in TEXTS.items():
        (HERE / fuzzer).mkdir(exist_ok=True)
        for number, text in enumerate(texts):
            (HERE / fuzzer / f"{number}").write_bytes(bytes([number]) + text)
    cuts = b"".join(half_of_a_cut(number, wanted) for number in range(1000, 1200) for wanted in (0xFF, 0))
    (HERE / "fuzz_chunker").mkdir(exist_ok=True)
    for average in CHUNK_AVERAGES:
        (HERE / "fuzz_chunker" / f"{average}").write_bytes(bytes([0x80 | average, 0, 0, 0, 1]) + cuts)
    for name, archive in ARCHIVES.items():
        (HERE / "fuzz_tar" / name).write_bytes(b"\x0c" + tb.archive(*archive))


if __name__ == "__main__":
    main()
