//! PyTorch checkpoints as people save them: the weights under any key, and objects of all kinds beside them. Each is read, and
//! nothing in it is run. The pickles are those that Python 3 and PyTorch write of such objects.

use super::craft::*;
use qformer::weights::Weights;

fn open(body: &[u8]) -> Result<Weights, String> {
    Weights::from_bytes("x.pth", archive(body)).map_err(|e| e.to_string())
}

/// `cls.__new__(cls)`, then its state.
fn object(module: &str, name: &str, state: Vec<u8>) -> Vec<u8> {
    join(&[&global(module, name), b")\x81", &state, b"b"])
}

fn bytes(latin: &str) -> Vec<u8> {
    call(global("_codecs", "encode"), &[text(latin), text("latin1")])
}

fn numpy_number(module: &str) -> Vec<u8> {
    let state = tuple(&[int(3), text("<"), b"N".to_vec(), b"N".to_vec(), int(-1), int(-1), int(0)]);
    let dtype = join(&[&call(global("numpy", "dtype"), &[text("f8"), vec![0x89], vec![0x88]]), &state, b"b"]);
    call(global(module, "scalar"), &[dtype, bytes("\0\0\0\0\0\0\u{f0}?")])
}

fn numpy_array() -> Vec<u8> {
    let made = call(
        global("numpy.core.multiarray", "_reconstruct"),
        &[global("numpy", "ndarray"), ints(&[0]), bytes("b")],
    );
    let state = tuple(&[int(1), ints(&[2]), numpy_number("numpy.core.multiarray"), vec![0x89], bytes("ab")]);
    join(&[&made, &state, b"b"])
}

fn optimizer() -> Vec<u8> {
    let moments = dict(&[("step", int(7)), ("exp_avg", good()), ("exp_avg_sq", good())]);
    let state = join(&[b"}(", &int(0), &moments, &int(1), &moments, b"u"]);
    let group =
        dict(&[("lr", b"G\x3f\x1a\x36\xe2\xeb\x1c\x43\x2d".to_vec()), ("params", list(&[int(0), int(1)]))]);
    dict(&[("state", state), ("param_groups", list(&[group]))])
}

/// What stands beside the weights, and what is said of it.
fn beside() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let settings = dict(&[("lr", int(1)), ("path", text("/data")), ("layers", list(&[int(1), int(2)]))]);
    let wide = [&[0x8a, 16][..], &[0xff; 15], &[0x7f]].concat();
    let context =
        object("omegaconf.base", "ContainerMetadata", dict(&[("ref_type", global("typing", "Any"))]));
    let node = object("omegaconf.nodes", "AnyNode", dict(&[("_val", int(3)), ("_metadata", context)]));
    let words = call(global("__builtin__", "set"), &[list(&[text("a")])]);
    let counts = join(&[
        &call(global("collections", "defaultdict"), &[global("__builtin__", "dict")]),
        &text("a"),
        &settings,
        b"s",
    ]);
    vec![
        ("args", object("argparse", "Namespace", settings.clone()), "args (argparse.Namespace)"),
        (
            "config",
            object("my_project.settings", "Config", settings.clone()),
            "config (my_project.settings.Config)",
        ),
        (
            "hparams",
            join(&[
                &global("pytorch_lightning.utilities.parsing", "AttributeDict"),
                b")\x81(",
                &text("lr"),
                &int(1),
                b"u",
            ]),
            "hparams",
        ),
        (
            "cfg",
            object("omegaconf.dictconfig", "DictConfig", dict(&[("_content", dict(&[("lr", node)]))])),
            "cfg (omegaconf.dictconfig.DictConfig)",
        ),
        ("optimizer", optimizer(), "optimizer"),
        ("loss", numpy_number("numpy.core.multiarray"), "loss (numpy.core.multiarray.scalar)"),
        ("best", numpy_number("numpy._core.multiarray"), "best (numpy._core.multiarray.scalar)"),
        ("numpy_rng_state", tuple(&[text("MT19937"), numpy_array(), int(624), int(0)]), "numpy_rng_state"),
        ("generator", dict(&[("state", wide)]), "generator"),
        ("words", words, "words (__builtin__.set)"),
        ("counts", counts, "counts"),
        (
            "when",
            call(global("datetime", "datetime"), &[bytes("\x07\u{e8}\x01\x02\x03\x04\x05\0\0\0")]),
            "when (datetime.datetime)",
        ),
        (
            "folder",
            call(global("pathlib", "PosixPath"), &[text("/"), text("data")]),
            "folder (pathlib.PosixPath)",
        ),
        ("device", call(global("torch", "device"), &[text("cuda"), int(0)]), "device (torch.device)"),
        ("dtype", global("torch", "float16"), "dtype (torch.float16)"),
        ("notes", text(&"x".repeat(200_000)), "notes"),
        ("torch_rng_state", good(), "torch_rng_state (a tensor of F32)"),
        (
            "schedule",
            call(global("functools", "partial"), &[global("my_project.schedule", "cosine")]),
            "schedule (functools.partial)",
        ),
        (
            "phase",
            call(global("my_project.phases", "Phase"), &[text("second")]),
            "phase (my_project.phases.Phase)",
        ),
        (
            "phases",
            object("my_project.phases", "Phases", tuple(&[b"N".to_vec(), settings])),
            "phases (my_project.phases.Phases)",
        ),
        (
            "seeds",
            call(global("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"), &[int(1)]),
            "seeds (numpy.random.bit_generator.__pyx_unpickle_SeedSequence)",
        ),
        (
            "layout",
            call(global("torch.serialization", "_get_layout"), &[text("torch.sparse_coo")]),
            "layout (torch.serialization._get_layout)",
        ),
        ("amp", join(&[b"}(", &int(1), &good(), b"u"]), "amp"),
        ("bits", b"U\x02\xff\xfe".to_vec(), "bits"),
    ]
}

#[test]
fn objects_beside_the_weights_are_named_and_left() {
    for (key, body, says) in beside() {
        let file = open(&dict(&[("epoch", int(3)), ("model", dict(&[("w", good())])), (key, body)]));
        let file = file.unwrap_or_else(|e| panic!("{key}: {e}"));
        assert_eq!(file.bytes("w").unwrap(), FLOATS, "{key}");
        assert_eq!(file.others(), ["epoch", says]);
    }
    let all: Vec<(&str, Vec<u8>)> = beside().into_iter().map(|(key, body, _)| (key, body)).collect();
    let file = open(&dict(&[&[("state_dict", dict(&[("w", good())]))], &all[..]].concat())).unwrap();
    assert_eq!(file.others().len(), all.len());
}

/// Complex numbers and those of PyTorch's new kinds are no weights of ours; the rest is read.
#[test]
fn tensors_of_other_numbers_are_named_and_left() {
    let complex = tensor_of(storage("ComplexFloatStorage", "1", 2, false), 0, &[2], &[1]);
    let bytes_of = join(&[
        &tuple(&[
            text("storage"),
            global("torch.storage", "UntypedStorage"),
            text("1"),
            text("cpu"),
            int(16),
        ]),
        b"Q",
    ]);
    let hooks = call(global("collections", "OrderedDict"), &[]);
    let args =
        [bytes_of, int(0), ints(&[16]), ints(&[1]), vec![0x89], hooks, global("torch", "float8_e4m3fn")];
    let float8 = call(global("torch._utils", "_rebuild_tensor_v3"), &args);
    for (odd, says) in
        [(complex, "odd (a tensor of 8 bytes each)"), (float8, "odd (a tensor of 1 bytes each)")]
    {
        let mut entries = entries(&pickle(&dict(&[("w", good()), ("odd", odd)])));
        entries.push(entry("a/data/1", &FLOATS));
        let file = Weights::from_bytes("x.pth", zip(b"", &entries)).unwrap();
        assert_eq!(file.bytes("w").unwrap(), FLOATS);
        assert_eq!((file.tensors().len(), file.others()), (1, &[says.to_string()][..]));
    }
}

/// (what the file holds, the key whose weights are read, or what the error says)
fn forms() -> Vec<(Vec<u8>, Result<&'static str, &'static str>)> {
    let weights = |name: &str| dict(&[(name, good())]);
    let (ours, theirs) = (|| weights("Qformer.bert.x"), || weights("w"));
    let mut forms = Vec::new();
    for key in ["model", "state_dict", "module", "model_state_dict", "net", "params", "model_ema", "anything"]
    {
        forms.push((dict(&[(key, ours()), ("epoch", int(1))]), Ok("Qformer.bert.x")));
        forms.push((dict(&[("epoch", int(1)), (key, theirs())]), Ok("w")));
    }
    forms.extend([
        (dict(&[("state_dict", dict(&[("model", ours())]))]), Ok("Qformer.bert.x")),
        (dict(&[("a", dict(&[("b", dict(&[("c", theirs())]))]))]), Ok("w")),
        (dict(&[("model", ours()), ("model_ema", weights("Qformer.bert.y"))]), Ok("Qformer.bert.x")),
        (dict(&[("ema", weights("Qformer.bert.y")), ("network", theirs())]), Ok("w")),
        (dict(&[("params_ema", weights("v")), ("params", theirs())]), Ok("w")),
        (dict(&[("discriminator", theirs()), ("model", ours())]), Ok("Qformer.bert.x")),
        (dict(&[("model", theirs()), ("state_dict", ours())]), Ok("Qformer.bert.x")),
        (dict(&[("seed", good()), ("model", theirs())]), Ok("w")),
        (dict(&[("Qformer.bert.x", good()), ("model", theirs())]), Ok("Qformer.bert.x")),
        (dict(&[("optimizer", optimizer()), ("weights_of_mine", theirs())]), Ok("w")),
        (dict(&[("a", theirs()), ("b", weights("v"))]), Err("several dictionaries of tensors (a, b)")),
        // parts of one model: neither is the whole
        (
            dict(&[("Qformer", weights("bert.encoder.x")), ("vision_proj", weights("weight"))]),
            Err("several dictionaries of tensors (Qformer, vision_proj)"),
        ),
        (
            dict(&[("ema_a", theirs()), ("ema_b", theirs())]),
            Err("several dictionaries of tensors (ema_a, ema_b)"),
        ),
        (dict(&[("optimizer", optimizer())]), Err("a dictionary without a tensor")),
        (list(&[theirs()]), Err("an object that is no dictionary of tensors")),
        (
            object("my_project.model", "Model", dict(&[("w", good())])),
            Err("an object (my_project.model.Model) that is no dictionary of tensors"),
        ),
        (good(), Err("an object that is no dictionary of tensors")),
    ]);
    forms
}

#[test]
fn the_weights_are_found_under_any_key() {
    for (i, (body, expected)) in forms().into_iter().enumerate() {
        match (open(&body), expected) {
            (Ok(file), Ok(name)) => {
                assert_eq!(file.tensors().len(), 1, "{i}");
                assert_eq!(file.bytes(name).unwrap(), FLOATS, "{i}");
            }
            (Err(message), Err(says)) => assert!(message.contains(says), "{i}: {message}"),
            (found, _) => panic!("{i}, {expected:?}: {:?}", found.map(|f| f.tensors().to_vec())),
        }
    }
}

/// Python 2 wrote names as bytes, and an ordered dictionary as a list of pairs.
#[test]
fn files_of_python_2_are_read() {
    let short = |s: &str| [&[b'U', s.len() as u8][..], s.as_bytes()].concat();
    let pairs = list(&[list(&[short("w"), good()])]);
    let file = open(&call(global("collections", "OrderedDict"), &[pairs])).unwrap();
    assert_eq!(file.bytes("w").unwrap(), FLOATS);
    for wrong in [list(&[int(1)]), list(&[list(&[short("w")])]), int(3)] {
        assert!(open(&call(global("collections", "OrderedDict"), &[wrong])).is_err());
    }
}

/// None of what honest people write is called deceit.
#[test]
fn messages_do_not_accuse() {
    for (body, _) in forms().into_iter().filter(|(_, expected)| expected.is_err()) {
        let message = open(&body).err().unwrap();
        assert!(!message.contains("deceive") && !message.contains("hides"), "{message}");
    }
}
