//! COCO's picture names. A picture keeps its number, but not its name: COCO_train2014_000000000009.jpg of 2014 is
//! 000000000009.jpg since 2017, and Karpathy's lists put a folder before it. Numbers are unique across all of them.

const SETS: [&str; 4] = ["train2014", "val2014", "train2017", "val2017"];

/// Other names of the picture that a list calls `name` and gives this id; where the name is only its id, the names
/// that people give to numbered pictures.
pub fn other_names(name: &str, id: &str) -> Vec<String> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let mut names = Vec::new();
    let stem = match file.split_once('.') {
        Some((stem, "jpg")) => stem,
        None if name == id => {
            names.extend(["jpg", "jpeg", "png", "webp"].map(|e| format!("{id}.{e}")));
            file
        }
        _ => return names,
    };
    let digits = stem.rsplit('_').next().unwrap_or_default();
    let known = digits == stem
        || SETS.iter().chain(&["test2014", "test2015"]).any(|set| stem == format!("COCO_{set}_{digits}"));
    let width = if name == id { 1..=12 } else { 12..=12 };
    if !known || !width.contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return names;
    }
    let plain = format!("{digits:0>12}.jpg");
    let old = SETS.iter().filter(|set| set.ends_with("2014")).map(|set| format!("COCO_{set}_{plain}"));
    let files: Vec<String> = std::iter::once(plain.clone()).chain(old).collect();
    for file in files {
        names.extend(SETS.iter().map(|set| format!("{set}/{file}")));
        names.push(file);
    }
    names.retain(|other| other != name);
    names
}

#[cfg(test)]
mod tests {
    use super::other_names;

    #[test]
    fn a_number_keeps_its_picture() {
        let names = other_names("val2014/COCO_val2014_000000391895.jpg", "391895");
        for name in ["000000391895.jpg", "val2017/000000391895.jpg", "train2017/000000391895.jpg"] {
            assert!(names.iter().any(|n| n == name), "{names:?}");
        }
        assert!(other_names("000000391895.jpg", "x").iter().any(|n| n == "COCO_train2014_000000391895.jpg"));
        assert!(other_names("9", "9").iter().any(|n| n == "000000000009.jpg"));
        assert!(other_names("9", "9").iter().any(|n| n == "9.png"));
        for name in ["cat.jpg", "IMG_0001.jpg", "12.jpg", "COCO_x_000000391895.jpg", "000000391895.png", "猫"]
        {
            assert!(other_names(name, "1").is_empty(), "{name}");
        }
    }
}
