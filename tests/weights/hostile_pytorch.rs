//! PyTorch files that lie, overreach or would run code: each is refused with its message, quickly and in little memory.

use super::craft::*;
use super::meter;
use qformer::weights::Weights;

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    says: &'static str,
}

fn case(name: &'static str, says: &'static str, bytes: Vec<u8>) -> Case {
    Case { name, bytes, says }
}

/// An archive whose only entry `w` is this.
fn value(body: Vec<u8>) -> Vec<u8> {
    archive(&dict(&[("w", body)]))
}

fn run(module: &str, name: &str, argument: &str) -> Vec<u8> {
    value(call(global(module, name), &[text(argument)]))
}

fn code() -> Vec<Case> {
    let raw = |body: &[u8]| archive(&dict(&[("w", body.to_vec())]));
    vec![
        case(
            "os.system",
            "refers to os.system, which is not tensor data",
            run("os", "system", "touch stolen"),
        ),
        case("posix.system", "refers to posix.system", run("posix", "system", "id")),
        case("eval", "refers to builtins.eval", run("builtins", "eval", "1")),
        case("getattr", "refers to __builtin__.getattr", run("__builtin__", "getattr", "x")),
        case("subprocess", "refers to subprocess.Popen", run("subprocess", "Popen", "sh")),
        case(
            "nested load",
            "refers to torch.storage._load_from_bytes",
            run("torch.storage", "_load_from_bytes", "x"),
        ),
        case("runpy", "refers to runpy._run_code", run("runpy", "_run_code", "x")),
        case(
            "a function of another library",
            "refers to numpy.testing._private.utils.runstring",
            run("numpy.testing._private.utils", "runstring", "x"),
        ),
        case("a name alone", "refers to os.system", value(global("os", "system"))),
        case(
            "an argument",
            "refers to posix.system",
            value(call(global("functools", "partial"), &[global("posix", "system")])),
        ),
        case("a class that runs programs", "refers to subprocess.Popen", raw(b"csubprocess\nPopen\n)\x81")),
        case("an object of nothing", "something that is no class", raw(b"N)\x81")),
        case(
            "name without end",
            "a name that does not end",
            raw(&[b"cos\n".as_slice(), &[b'a'; 600]].concat()),
        ),
        case("name not UTF-8", "a name that is not UTF-8", raw(b"cos\n\xff\n")),
        case("name with escapes", r"refers to os.\u{1b}[2Jsystem", raw(b"cos\n\x1b[2Jsystem\n")),
        case("STACK_GLOBAL", "the instruction STACK_GLOBAL", raw(b"\x93")),
        case("INST", "the instruction INST", raw(b"(ios\nsystem\n")),
        case("OBJ", "the instruction OBJ", raw(b"(o")),
        case("NEWOBJ", "an instruction without its values", archive(b"\x81")),
        case("EXT1", "the instruction EXT1", raw(b"\x82\x01")),
        case("PERSID", "the instruction PERSID", raw(b"P0\n")),
        case("FRAME", "the instruction FRAME", raw(b"\x95")),
        case("BINUNICODE8", "the instruction BINUNICODE8", raw(b"\x8d")),
        case("LONG4", "the instruction LONG4", raw(b"\x8b\xff\xff\xff\x7f")),
        case("no instruction", "the instruction 0xff", raw(b"\xff")),
        case(
            "build on a tensor",
            "a state set on an object",
            value(join(&[&good(), &dict(&[("a", int(1))]), b"b"])),
        ),
        case(
            "build of other state",
            "a state set on an object",
            value(join(&[b"}", &dict(&[("__class__", int(1))]), b"b"])),
        ),
        case("build without a dict", "a state that is no dict", value(join(&[&good(), b"Nb"]))),
        case("call of a tensor", "no function", value(join(&[&good(), b")R"]))),
        case("call without a tuple", "no tuple", value(join(&[&global("torch", "Size"), b"NR"]))),
        case(
            "too few arguments",
            "arguments it does not take",
            value(call(global("torch._utils", "_rebuild_tensor_v2"), &[int(1)])),
        ),
        case(
            "call of a storage type",
            "arguments it does not take",
            value(call(global("torch", "FloatStorage"), &[int(9)])),
        ),
        case(
            "subclass of another function",
            "a tensor of an unknown kind",
            value(call(
                global("torch._tensor", "_rebuild_from_type_v2"),
                &[global("torch", "Size"), global("torch", "Tensor"), tuple(&[]), b"N".to_vec()],
            )),
        ),
    ]
}

fn bombs() -> Vec<Case> {
    let raw = |body: &[u8]| archive(&dict(&[("w", body.to_vec())]));
    // x = (); x = (x, x); 100 times: 2^100 values if copied
    let mut laughs = b")".to_vec();
    for _ in 0..100 {
        laughs.extend(b"q\x00h\x00\x86");
    }
    let mut dicts = b"}".to_vec();
    for _ in 0..70 {
        dicts = join(&[b"}", &text("k"), &dicts, b"s"]);
    }
    vec![
        case("memo bomb", "nested more than 64 deep", raw(&laughs)),
        case(
            "tuples in tuples",
            "nested more than 64 deep",
            raw(&[b")".as_slice(), &[0x85; 1_000_000]].concat()),
        ),
        case(
            "lists in lists",
            "nested more than 64 deep",
            raw(&["]".repeat(100), "a".repeat(99)].concat().into_bytes()),
        ),
        case("dicts in dicts", "nested more than 64 deep", raw(&dicts)),
        case("marks", "more than 131072 marks", raw(&[b'('; 1_000_000])),
        case("values at once", "more than 131072 values at once", raw(&[b'N'; 1_000_000])),
        case("values", "more than 262144 values", raw(&b"(NNNNNNNt".repeat(100_000))),
        case("text of 4 GiB", "wants 4294967295 bytes of", raw(b"X\xff\xff\xff\xff")),
        case(
            "text of 1 MiB, nothing else",
            "a dictionary without a tensor",
            raw(&text(&"a".repeat(1 << 20))),
        ),
        case("text beyond the end", "wants 60000 bytes", archive(b"X\x60\xea\x00\x00")),
        case("text not UTF-8, nothing else", "a dictionary without a tensor", raw(b"X\x01\x00\x00\x00\xff")),
        case("wide integer", "an integer of 255 bytes", raw(&[&[0x8a, 255], [0; 255].as_slice()].concat())),
        case("memo slot 2^32 - 1", "memo slot 4294967295", raw(b"Nr\xff\xff\xff\xff")),
        case("empty memo slot", "memo slot 9, which is empty", raw(b"h\x09")),
        case("memo of nothing", "without its values", archive(b"q\x00")),
        case("tuple of nothing", "without its values", archive(b"\x87")),
        case("no mark", "without its mark", archive(b"t")),
        case("key without value", "a key without its value", archive(&join(&[b"}(", &text("a"), b"u"]))),
        case("key on a tensor", "no dict", value(join(&[&good(), &text("a"), b"Ns"]))),
        case("item in a tensor", "no list", value(join(&[&good(), b"Na"]))),
        case("values left over", "values left over", archive(&join(&[b"N", &dict(&[("w", good())])]))),
        case("no end", "wants 1 bytes of 0", zip(b"", &entries(&[0x80, 2, b'}']))),
        case(
            "second pickle behind the first",
            "2 bytes after the end of the pickle",
            zip(b"", &entries(&join(&[&pickle(&dict(&[("w", good())])), b"N."]))),
        ),
        case(
            "protocol 4",
            "pickle protocol 4",
            zip(b"", &entries(&join(&[&[0x80, 4], &dict(&[("w", good())]), b"."]))),
        ),
        case("protocol 0", "does not begin with its protocol", zip(b"", &entries(b"(dp0\n."))),
        case("protocol twice", "begins twice", archive(b"\x80\x02}")),
        case("9 MiB of pickle", "a data.pkl of 9437184 bytes", zip(b"", &entries(&vec![b'N'; 9 << 20]))),
    ]
}

fn shapes() -> Vec<Case> {
    let of = |len, offset, size: &[i64], stride: &[i64]| {
        value(tensor_of(storage("FloatStorage", "0", len, false), offset, size, stride))
    };
    let bad_id = |items: &[Vec<u8>]| value(join(&[&tuple(items), b"Q"]));
    vec![
        case("negative size", "no number of 0 or more", value(tensor(0, &[-1], &[1]))),
        case("negative stride", "no number of 0 or more", value(tensor(3, &[2], &[-1]))),
        case("negative offset", "no number of 0 or more", value(tensor(-1, &[2], &[1]))),
        case("size beyond memory", "which no memory holds", value(tensor(0, &[1 << 40, 1 << 40], &[1, 1]))),
        case("bytes beyond memory", "which no memory holds", value(tensor(0, &[1 << 61], &[0]))),
        case("size beyond the storage", "reaches beyond its storage", value(tensor(0, &[5], &[1]))),
        case("stride beyond the storage", "reaches beyond its storage", value(tensor(0, &[2, 2], &[3, 1]))),
        case("stride that overflows", "reaches beyond its storage", value(tensor(0, &[3], &[i64::MAX]))),
        case("offset beyond the storage", "reaches beyond its storage", value(tensor(1, &[2, 2], &[2, 1]))),
        case("offset of an empty tensor", "reaches beyond its storage", value(tensor(5, &[0], &[1]))),
        case("9 axes", "with 9 axes", value(tensor(0, &[1; 9], &[1; 9]))),
        case("sizes without strides", "with 2 sizes and 1 strides", value(tensor(0, &[2, 2], &[1]))),
        case(
            "a shape that is a number",
            "a shape that is no tuple",
            value(call(
                global("torch._utils", "_rebuild_tensor_v2"),
                &[
                    storage("FloatStorage", "0", 4, false),
                    int(0),
                    int(4),
                    ints(&[1]),
                    vec![0x89],
                    b"N".to_vec(),
                ],
            )),
        ),
        case(
            "4 GiB from one number",
            "tensors of 4294967296 bytes in a file of",
            value(tensor(0, &[1 << 30], &[0])),
        ),
        case("many views of one storage", "in a file of", {
            let names: Vec<String> = (0..60).map(|i| format!("w{i}")).collect();
            let mut body = b"}(".to_vec();
            for n in &names {
                body.extend(join(&[&text(n), &tensor(0, &[200, 4], &[0, 1])]));
            }
            archive(&join(&[&body, b"u"]))
        }),
        case(
            "storage larger than its record",
            "which the pickle calls 400 elements of F32",
            of(400, 0, &[400], &[1]),
        ),
        case(
            "storage smaller than its record",
            "which the pickle calls 2 elements of F32",
            of(2, 0, &[2], &[1]),
        ),
        case("negative storage", "described in an unknown way", of(-4, 0, &[1], &[1])),
        case(
            "storage that is not there",
            "a storage 7 that the archive does not hold",
            value(tensor_of(storage("FloatStorage", "7", 4, false), 0, &[4], &[1])),
        ),
        case(
            "storage key with a path",
            "a storage ../0 that",
            value(tensor_of(storage("FloatStorage", "../0", 4, false), 0, &[4], &[1])),
        ),
        case(
            "storage of two dtypes",
            "storage \"0\" as 8 of F16 and as 4 of F32",
            archive(&dict(&[
                ("a", good()),
                ("b", tensor_of(storage("HalfStorage", "0", 8, false), 0, &[8], &[1])),
            ])),
        ),
        case(
            "persistent id of 4",
            "described in an unknown way",
            bad_id(&[text("storage"), global("torch", "FloatStorage"), text("0"), text("cpu")]),
        ),
        case(
            "persistent id of a module",
            "described in an unknown way",
            bad_id(&[text("module"), global("torch", "FloatStorage"), text("0"), text("cpu"), int(4)]),
        ),
        case(
            "persistent id with a view",
            "described in an unknown way",
            value(tensor_of(storage("FloatStorage", "0", 4, true), 0, &[4], &[1])),
        ),
        case(
            "tensor without storage",
            "a tensor without a storage",
            value(tensor_of(b"N".to_vec(), 0, &[4], &[1])),
        ),
        case("name twice", "two entries named \"w\"", archive(&dict(&[("w", good()), ("w", good())]))),
        case("name with control characters", "control characters", archive(&dict(&[("w\x1b[2J", good())]))),
        case("name of 600 bytes", "a name of 600 bytes", archive(&dict(&[(&"n".repeat(600), good())]))),
        case("keys that are numbers", "keys are not names", archive(&join(&[b"}K\x01", &good(), b"s"]))),
        case("a tensor alone", "no dictionary of tensors", archive(&good())),
        case("no tensor", "a dictionary without a tensor", archive(&dict(&[("epoch", int(1))]))),
    ]
}

fn archives() -> Vec<Case> {
    let honest = || entries(&pickle(&dict(&[("w", good())])));
    let with = |change: fn(&mut Vec<Entry>)| {
        let mut e = honest();
        change(&mut e);
        zip(b"", &e)
    };
    let edit = |from_end: usize, bytes: &[u8]| {
        let mut file = zip(b"", &honest());
        let at = file.len() - from_end;
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    vec![
        case("compressed", "compressed by method 8", with(|e| e[2].method = 8)),
        case("encrypted", "with flags 0x0001", with(|e| e[2].flags = 1)),
        case("strong encryption", "with flags 0x0040", with(|e| e[0].flags = 0x40)),
        case("name twice", "two entries \"a/data/0\"", with(|e| e.push(entry("a/data/0", &FLOATS)))),
        case("traversal", "a/../x", with(|e| e.push(entry("a/../x", b"x")))),
        case(
            "traversal in the root",
            "not one of PyTorch's",
            with(|e| {
                for e in e {
                    e.name = e.name.replacen('a', "..", 1);
                    e.local_name = e.name.clone();
                }
            }),
        ),
        case("absolute", "/etc/passwd", with(|e| e.push(entry("/etc/passwd", b"x")))),
        case("two roots", "b/version", with(|e| e.push(entry("b/version", b"3\n")))),
        case(
            "name differs",
            "called \"b/data/0\" in its own header",
            with(|e| e[2].local_name = "b/data/0".into()),
        ),
        case("hidden pickle", "a/data2.pkl", with(|e| e.push(entry("a/data2.pkl", b"N.")))),
        case("TorchScript", "a TorchScript program", with(|e| e.push(entry("a/code/__torch__.py", b"pass")))),
        case("unused storage", "data/9, which no tensor is in", with(|e| e.push(entry("a/data/9", b"xxxx")))),
        case("storage by name", "\"a/data/x\"", with(|e| e.push(entry("a/data/x", b"xxxx")))),
        case("no pickle", "without data.pkl", with(|e| e.remove(0).data.clear())),
        case("no entry", "not one of PyTorch's", zip(b"", &[])),
        case("wrong checksum of the pickle", "does not match its checksum", with(|e| e[0].crc ^= 1)),
        case("big-endian", "not little-endian", with(|e| e[1] = entry("a/byteorder", b"big"))),
        case("packed size differs", "bytes stored in", with(|e| e[2].packed = 3)),
        case(
            "4 GiB of size",
            "reach into the directory",
            with(|e| (e[2].size, e[2].packed) = (u32::MAX, u32::MAX)),
        ),
        case(
            "size beyond the file",
            "reach into the directory",
            with(|e| (e[3].size, e[3].packed) = (1 << 30, 1 << 30)),
        ),
        case("bytes before the archive", "a gap before entry", zip(b"PK\x05\x06 hidden", &honest())),
        case("a script before the archive", "neither safetensors nor", zip(b"#!/bin/sh\n", &honest())),
        case("bytes between entries", "a gap before entry", with(|e| e[1].after = b"hidden".to_vec())),
        case("bytes before the directory", "a gap of 6 bytes", with(|e| e[3].after = b"hidden".to_vec())),
        case("entries that overlap", "an overlap before entry", with(|e| e[3].start = Some(0))),
        case("streamed without descriptor", "without the descriptor", with(|e| e[3].flags = 8)),
        case("comment", "no end of a zip archive", join(&[&edit(2, &3u16.to_le_bytes()), b"abc"])),
        case("comment that is not there", "no end of a zip archive", edit(2, &[1])),
        case("several parts", "in several parts", edit(18, &[1])),
        case("more entries than there are", "entries instead of 9", edit(14, &[9, 0, 9])),
        case("directory elsewhere", "which should end at", edit(6, &[0])),
        case("bytes behind the archive", "no end of a zip archive", join(&[&zip(b"", &honest()), b"x"])),
        case("a broken directory", "something that is no entry", {
            let mut file = zip(b"", &honest());
            let at = file.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
            file[at] = b'X';
            file
        }),
        case("zip64 end that differs", "two ends that differ", {
            let mut file = zip(b"", &honest());
            let end = file.split_off(file.len() - 22);
            let at = file.len() as u64;
            let mut record = join(&[
                b"PK\x06\x06",
                &44u64.to_le_bytes(),
                &[0; 12],
                &1u64.to_le_bytes(),
                &1u64.to_le_bytes(),
            ]);
            record.extend([0; 16]);
            let locator = join(&[b"PK\x06\x07\0\0\0\0", &at.to_le_bytes(), &1u32.to_le_bytes()]);
            join(&[&file, &record, &locator, &end])
        }),
    ]
}

fn others() -> Vec<Case> {
    let with = |change: fn(&mut Legacy)| {
        let mut file = legacy();
        change(&mut file);
        file.bytes()
    };
    vec![
        case("legacy: another magic number", "a magic number", with(|f| f.magic[5] ^= 1)),
        case("legacy: another version", "an unknown version", with(|f| f.version = pickle(&int(7)))),
        case(
            "legacy: big-endian",
            "not little-endian",
            with(|f| f.machine = pickle(&dict(&[("little_endian", vec![0x89])]))),
        ),
        case(
            "legacy: endian twice",
            "not little-endian",
            with(|f| {
                f.machine = pickle(&dict(&[("little_endian", vec![0x88]), ("little_endian", vec![0x88])]))
            }),
        ),
        case(
            "legacy: code in the machine",
            "refers to os.system",
            with(|f| f.machine = pickle(&call(global("os", "system"), &[text("id")]))),
        ),
        case(
            "legacy: code in the keys",
            "refers to os.system",
            with(|f| f.keys = pickle(&call(global("os", "system"), &[text("id")]))),
        ),
        case(
            "legacy: code in the object",
            "refers to os.system",
            with(|f| f.object = pickle(&dict(&[("w", call(global("os", "system"), &[text("id")]))]))),
        ),
        case(
            "legacy: storage in the keys",
            "described in an unknown way",
            with(|f| f.keys = pickle(&storage("FloatStorage", "94", 4, true))),
        ),
        case("legacy: keys that are no list", "no list", with(|f| f.keys = pickle(b"N"))),
        case("legacy: no key", "which the file does not list", with(|f| f.keys = pickle(b"]"))),
        case(
            "legacy: key twice",
            "listed twice",
            with(|f| f.keys = pickle(&list(&[text("94"), text("94")]))),
        ),
        case(
            "legacy: unknown key",
            "listed twice or that no tensor is in",
            with(|f| f.keys = pickle(&list(&[text("94"), text("95")]))),
        ),
        case(
            "legacy: key that is a number",
            "listed twice or that no tensor is in",
            with(|f| f.keys = pickle(&list(&[int(94)]))),
        ),
        case("legacy: other count", "of 5 elements, which the pickle calls 4", with(|f| f.storages[0] = 5)),
        case("legacy: cut in a storage", "which the file does not hold", with(|f| f.storages.truncate(20))),
        case("legacy: cut in a count", "has ended", with(|f| f.storages.truncate(3))),
        case("legacy: bytes behind", "1 bytes after the last storage", with(|f| f.storages.push(0))),
        case(
            "legacy: view of a storage",
            "described in an unknown way",
            with(|f| {
                f.object = pickle(&dict(&[(
                    "w",
                    tensor_of(
                        join(&[
                            &tuple(&[
                                text("storage"),
                                global("torch", "FloatStorage"),
                                text("94"),
                                text("cpu"),
                                int(4),
                                int(1),
                            ]),
                            b"Q",
                        ]),
                        0,
                        &[4],
                        &[1],
                    ),
                )]));
            }),
        ),
        case(
            "legacy: 2^60 elements",
            "which the file does not hold",
            with(|f| {
                f.object = pickle(&dict(&[(
                    "w",
                    tensor_of(storage("FloatStorage", "94", 1 << 60, true), 0, &[4], &[1]),
                )]));
                f.storages[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
            }),
        ),
        case("a tar archive", "a tar archive", [b"sys_info\0\0".as_slice(), &[0; 502]].concat()),
        case("an empty file", "0 bytes, too few", Vec::new()),
        case("7 bytes", "7 bytes, too few", b"PK\x03\x04\0\0\0".to_vec()),
        case("a page", "HTML or XML", b"<!DOCTYPE html><html></html>".to_vec()),
        case(
            "a git-lfs pointer",
            "a git-lfs pointer",
            b"version https://git-lfs.github.com/spec/v1\n".to_vec(),
        ),
        case("gzip", "a gzip archive", b"\x1f\x8b\x08\0\0\0\0\0\0\0\0".to_vec()),
        case(
            "a plain pickle",
            "a pickle that PyTorch has not written",
            b"\x80\x04\x95\0\0\0\0\0\0\0\0}.".to_vec(),
        ),
        case("text", "neither safetensors nor a PyTorch file", b"hello, world".to_vec()),
    ]
}

#[test]
fn hostile_pytorch_files_are_refused() {
    let cases: Vec<Case> = [code(), bombs(), shapes(), archives(), others()].into_iter().flatten().collect();
    assert!(cases.len() >= 45);
    let mut wrong = Vec::new();
    for Case { name, bytes, says } in cases {
        let bytes: std::sync::Arc<[u8]> = bytes.into();
        let (result, used) = meter::measure(|| Weights::from_bytes("x.pth", bytes).map(|_| ()));
        let message = result.err().map_or("accepted".into(), |e| e.to_string());
        if !message.contains(says) || !message.starts_with("read weights: x.pth: ") {
            wrong.push(format!("{name}: {message}"));
        }
        assert!(
            used.bytes < 64 << 20 && used.seconds < 1.0,
            "{name}: {} bytes, {} s",
            used.bytes,
            used.seconds
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The pieces the hostile files are made of make honest ones, too.
#[test]
fn the_honest_forms_are_read() {
    let named = |extra: Vec<u8>| {
        archive(&join(&[&call(global("collections", "OrderedDict"), &[]), b"(", &text("w"), &extra, b"u"]))
    };
    let parameter = call(global("torch._utils", "_rebuild_parameter"), &[good(), vec![0x88], b"N".to_vec()]);
    let from_type = call(
        global("torch._tensor", "_rebuild_from_type_v2"),
        &[
            global("torch._utils", "_rebuild_tensor_v2"),
            global("torch.nn.parameter", "Parameter"),
            tuple(&[
                storage("FloatStorage", "0", 4, false),
                int(0),
                call(global("torch", "Size"), &[ints(&[2, 2])]),
                ints(&[2, 1]),
                vec![0x89],
                b"N".to_vec(),
            ]),
            dict(&[("note", text("of a subclass"))]),
        ],
    );
    let metadata = join(&[
        &dict(&[("w", good())]),
        &dict(&[("_metadata", dict(&[("", dict(&[("version", int(1))]))]))]),
        b"b",
    ]);
    let plain = [
        archive(&dict(&[("w", good())])),
        named(good()),
        named(parameter),
        named(from_type),
        archive(&metadata),
        archive(&dict(&[("model", dict(&[("w", good())])), ("epoch", int(3))])),
    ];
    for (i, bytes) in plain.into_iter().enumerate() {
        let file = Weights::from_bytes("x.pth", bytes).unwrap();
        assert_eq!(file.get("w").unwrap().shape, [2, 2], "{i}");
        assert_eq!(file.bytes("w").unwrap(), FLOATS, "{i}");
    }
    let file = Weights::from_bytes("x.pth", legacy().bytes()).unwrap();
    assert_eq!(file.f32("w").unwrap(), [1.0, -2.0, 0.5, 4.0]);
    let transposed = Weights::from_bytes("x.pth", value(tensor(0, &[2, 2], &[1, 2]))).unwrap();
    assert_eq!(transposed.f32("w").unwrap(), [1.0, 0.5, -2.0, 4.0]);
}

/// A directory of 65,536 entries or more is not read.
#[test]
fn too_many_entries_are_refused() {
    let entries: Vec<Entry> = (0..65_535).map(|i| entry(&format!("a/data/{i}"), b"")).collect();
    let mut file = zip(b"", &entries);
    let end = file.split_off(file.len() - 22);
    let (at, begin) = (file.len() as u64, u64::from(u32::from_le_bytes(end[16..20].try_into().unwrap())));
    let (count, size) = (70_000u64.to_le_bytes(), (at - begin).to_le_bytes());
    let record =
        join(&[b"PK\x06\x06", &44u64.to_le_bytes(), &[0; 12], &count, &count, &size, &begin.to_le_bytes()]);
    let locator = join(&[b"PK\x06\x07\0\0\0\0", &at.to_le_bytes(), &1u32.to_le_bytes()]);
    let file: std::sync::Arc<[u8]> = join(&[&file, &record, &locator, &end]).into();
    let (result, used) = meter::measure(|| Weights::from_bytes("x.pth", file).map(|_| ()));
    let message = result.unwrap_err().to_string();
    assert!(message.contains("70000 entries"), "{message}");
    assert!(used.bytes < 64 << 20);
}
