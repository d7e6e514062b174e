//! safetensors files that lie or overreach: each is refused with its message before a byte of a tensor is read.

use super::craft::safetensors;
use super::meter;
use qformer::weights::Weights;
use std::fmt::Write;

fn one(dtype: &str, shape: &str, offsets: &str) -> String {
    format!(r#"{{"w":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}"#)
}

const F: &str = r#""F32""#;

/// (what it says, header, bytes of data)
fn headers() -> Vec<(&'static str, String, usize)> {
    let good = |name: &str, begin: usize, end: usize| {
        format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
    };
    let two = |a: String, b: String| format!("{{{a},{b}}}");
    let long = |n: usize| format!("{{{}}}", good(&"n".repeat(n), 0, 4));
    let metadata = |value: &str| format!(r#"{{"__metadata__":{value},{}}}"#, good("w", 0, 4));
    vec![
        ("EOF while parsing", "{".into(), 0),
        ("key must be a string", "{{".into(), 0),
        ("trailing characters", "{}x".into(), 0),
        ("trailing characters", "{}\0\0\0\0\0\0".into(), 0),
        ("trailing comma", format!("{{{},}}", good("w", 0, 4)), 4),
        ("key must be a string", "{/**/}".into(), 0),
        ("key must be a string", "{1:2}".into(), 0),
        ("EOF while parsing", format!("{{{}", good("w", 0, 4)), 4),
        ("control character", "{\"a\u{0}\":1}".into(), 0),
        ("unexpected end of hex escape", r#"{"\ud800":1}"#.into(), 0),
        ("the key \"w\" twice", two(good("w", 0, 4), good("w", 4, 8)), 8),
        ("the key \"w\" twice", two(good("w", 0, 4), good(r"\u0077", 0, 4)), 4),
        ("the key \"__metadata__\" twice", r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0),
        ("the metadata \"a\" twice", metadata(r#"{"a":"b","a":"c"}"#), 4),
        ("invalid type: integer `1`", metadata(r#"{"a":1}"#), 4),
        ("invalid type: map", metadata(r#"{"a":{"b":"c"}}"#), 4),
        ("invalid type: sequence", metadata("[]"), 4),
        ("invalid type: null", metadata("null"), 4),
        (
            "more than 1024 entries of metadata",
            {
                let entries: Vec<String> = (0..1025).map(|i| format!(r#""{i}":"""#)).collect();
                metadata(&format!("{{{}}}", entries.join(",")))
            },
            4,
        ),
        ("invalid type: integer `1`", r#"{"w":1}"#.into(), 0),
        ("invalid type: null", r#"{"w":null}"#.into(), 0),
        ("missing field `dtype`", r#"{"w":{"shape":[],"data_offsets":[0,0]}}"#.into(), 0),
        ("missing field `shape`", r#"{"w":{"dtype":"U8","data_offsets":[0,0]}}"#.into(), 0),
        ("missing field `data_offsets`", r#"{"w":{"dtype":"U8","shape":[0]}}"#.into(), 0),
        (
            "unknown field `stride`",
            r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"stride":[1]}}"#.into(),
            0,
        ),
        (
            "duplicate field `dtype`",
            r#"{"w":{"dtype":"U8","dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#.into(),
            0,
        ),
        ("of 4 bytes (F8_E5M2 [4]) at 0 to 3", one(r#""F8_E5M2""#, "[4]", "[0,3]"), 4),
        ("of dtype \"f32\"", one(r#""f32""#, "[1]", "[0,4]"), 4),
        ("of dtype \"\"", one(r#""""#, "[1]", "[0,4]"), 4),
        ("too many letters", one(&format!("\"{}\"", "F".repeat(4096)), "[1]", "[0,4]"), 4),
        ("invalid type: integer `4`", one("4", "[1]", "[0,4]"), 4),
        ("invalid value: integer `-1`", one(F, "[-1]", "[0,4]"), 4),
        ("invalid type: floating point `1.5`", one(F, "[1.5]", "[0,4]"), 4),
        ("invalid type: floating point `1.0`", one(F, "[1e0]", "[0,4]"), 4),
        ("number out of range", one(F, "[1e999]", "[0,4]"), 4),
        ("invalid type: string", one(F, r#"["1"]"#, "[0,4]"), 4),
        ("invalid type: null", one(F, "null", "[0,4]"), 4),
        ("invalid type: sequence", one(F, "[[1]]", "[0,4]"), 4),
        ("invalid type: integer `1`", one(F, "1", "[0,4]"), 4),
        ("expected value", one(F, "[NaN]", "[0,4]"), 4),
        ("invalid number", one(F, "[01]", "[0,4]"), 4),
        ("more than 8 numbers", one(F, "[1,1,1,1,1,1,1,1,1]", "[0,4]"), 4),
        ("more than 8 numbers", one(F, &format!("[{}1]", "1,".repeat(1_000_000)), "[0,4]"), 4),
        ("which no memory holds", one(F, "[4294967296,4294967296]", "[0,4]"), 4),
        ("which no memory holds", one(F, "[4611686018427387904]", "[0,4]"), 4),
        ("invalid type: floating point", one(F, "[18446744073709551616]", "[0,4]"), 4),
        ("of 4 bytes (F32 [1]) at 4 to 0", one(F, "[1]", "[4,0]"), 4),
        ("more than 2 numbers", one(F, "[1]", "[0,4,4]"), 4),
        ("without a begin and an end", one(F, "[1]", "[0]"), 4),
        ("invalid value: integer `-4`", one(F, "[1]", "[-4,0]"), 4),
        ("of 4 bytes (F32 [1]) at 0 to 8", one(F, "[1]", "[0,8]"), 8),
        ("of 8 bytes (F32 [2]) at 0 to 4", one(F, "[2]", "[0,4]"), 4),
        ("of 4 bytes (F32 [1]) at 18446744073709551615", one(F, "[1]", "[18446744073709551615,3]"), 4),
        ("ends at 400 of 4 bytes of data", one(F, "[100]", "[0,400]"), 4),
        ("ends at 1099511627776 of 4 bytes", one(F, "[274877906944]", "[0,1099511627776]"), 4),
        ("leaves a hole before it", one(F, "[1]", "[4,8]"), 8),
        ("leaves a hole before it", two(good("a", 0, 4), good("b", 8, 12)), 12),
        ("overlaps the one before it", two(good("a", 0, 8), good("b", 4, 12)), 12),
        ("overlaps the one before it", two(good("a", 0, 4), good("b", 0, 4)), 4),
        ("overlaps the one before it", two(good("a", 0, 4), good("b", 2, 2)), 4),
        ("leaves a hole before it", two(good("a", 0, 4), good("b", 9, 9)), 4),
        ("1 bytes behind the last tensor", format!("{{{}}}", good("a", 0, 4)), 5),
        ("4 bytes behind the last tensor", "{}".into(), 4),
        ("ends at 4 of 3 bytes", format!("{{{}}}", good("a", 0, 4)), 3),
        ("a name of 513 bytes", long(513), 4),
        ("a name of 1048576 bytes", long(1 << 20), 4),
        ("empty or with control characters", long(0), 4),
        ("empty or with control characters", format!("{{{}}}", good(r"w\u001b[2J", 0, 4)), 4),
        ("invalid type: sequence", format!(r#"{{"w":{}"#, "[".repeat(100_000)), 0),
        ("invalid type: map", metadata(&format!(r#"{{"a":{}"#, r#"{"a":"#.repeat(100_000))), 0),
    ]
}

/// (what it says, file)
fn files() -> Vec<(&'static str, Vec<u8>)> {
    let lengths = |n: u64| [&n.to_le_bytes()[..], b"{}      "].concat();
    let mut many = String::from("{");
    for i in 0..70_000 {
        write!(many, r#""{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}},"#).unwrap();
    }
    let million = [&(67u64 << 20).to_le_bytes()[..], b"{", &vec![b' '; (67 << 20) - 1]].concat();
    vec![
        ("a header of 9223372036854775808 bytes", lengths(1 << 63)),
        ("a header of 18446744073709551615 bytes", lengths(u64::MAX)),
        ("a header of 16777217 bytes", lengths((16 << 20) + 1)),
        ("9 bytes wanted where the file of 16 bytes has ended", lengths(9)),
        ("a header with EOF while parsing", lengths(0)),
        ("7 bytes, too few", lengths(8)[..7].to_vec()),
        ("neither safetensors nor", safetensors("[]", 0)),
        ("neither safetensors nor", safetensors(" {}", 0)),
        ("neither safetensors nor", safetensors("\u{feff}{}", 0)),
        ("a header with invalid unicode", [&4u64.to_le_bytes()[..], b"{\"\xff\""].concat()),
        ("a header of 70254592 bytes", million),
        ("more than 65536 tensors", safetensors(&many, 0)),
    ]
}

#[test]
fn hostile_safetensors_files_are_refused() {
    let mut cases = files();
    cases.extend(headers().into_iter().map(|(says, header, data)| (says, safetensors(&header, data))));
    assert!(cases.len() >= 60);
    let mut wrong = Vec::new();
    for (says, bytes) in cases {
        let bytes: std::sync::Arc<[u8]> = bytes.into();
        let (result, used) = meter::measure(|| Weights::from_bytes("x.safetensors", bytes).map(|_| ()));
        let message = result.err().map_or("accepted".into(), |e| e.to_string());
        if !message.contains(says)
            || !message.starts_with("read weights: x.safetensors: ")
            || message.len() > 1500
        {
            wrong.push(format!("{says}: {}", message.chars().take(300).collect::<String>()));
        }
        assert!(
            used.bytes < 64 << 20 && used.seconds < 1.0,
            "{says}: {} bytes, {} s",
            used.bytes,
            used.seconds
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_honest_forms_are_read() {
    let header = r#"{"__metadata__":{"a":"b"},"z":{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]},"a":{"shape":[4],"dtype":"U8","data_offsets":[0,4]},"e":{"dtype":"F32","shape":[0,9],"data_offsets":[8,8]}}   "#;
    let file = Weights::from_bytes("x.safetensors", safetensors(header, 8)).unwrap();
    let names: Vec<&str> = file.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a", "z", "e"], "in the order of their bytes");
    assert_eq!(file.metadata()["a"], "b");
    assert_eq!(file.bytes("z").unwrap(), [7; 4]);
    assert_eq!(file.get("z").unwrap().shape, [2, 1]);
    assert!(file.bytes("e").unwrap().is_empty());
    let message = file.bytes("nothing").unwrap_err().to_string();
    assert!(message.contains("expected a tensor nothing"), "{message}");
}
