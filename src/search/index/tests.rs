//! The index against a real folder: added to, interrupted, damaged.

use super::*;
use crate::files::RealDisk;

fn identity(model: &str) -> Identity {
    Identity { folder: "/m".into(), model: model.into(), num_query: 2, embed_dim: 3 }
}

fn picture(n: u64) -> Picture {
    let text = |what: &str| format!("{what}{n}");
    Picture { name: text("n"), path: text("/p/"), bytes: n, modified: 10 * n, hash: text("h") }
}

fn features(n: u64) -> Vec<f32> {
    (0..6).map(|i| n as f32 + i as f32 / 8.0).collect()
}

/// Every picture's path with its features, as a reader finds them.
fn contents(folder: &Path) -> Vec<(String, Vec<f32>)> {
    let index = Index::read(folder).unwrap();
    let mut all = Vec::new();
    for number in index.parts() {
        let part = index.part(number).unwrap();
        all.extend(
            part.pictures
                .iter()
                .map(|(row, i)| (index.picture(*i).path.clone(), part.features[row * 6..][..6].to_vec())),
        );
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn expected(of: &[(u64, u64)]) -> Vec<(String, Vec<f32>)> {
    of.iter().map(|(n, f)| (format!("/p/{n}"), features(*f))).collect()
}

#[test]
fn pictures_are_added_replaced_forgotten_and_tidied() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("index");
    let mut index = Index::own(&RealDisk, &folder, &identity("a"), false).unwrap();
    (1..=4).for_each(|n| index.add(picture(n), &features(n)).unwrap());
    assert!(contents(&folder).is_empty(), "nothing is listed before it is saved");
    index.save(&RealDisk).unwrap();
    assert_eq!(contents(&folder), expected(&[(1, 1), (2, 2), (3, 3), (4, 4)]));
    index.add(picture(2), &features(9)).unwrap();
    assert_eq!(index.find("/p/2"), Some(&picture(2)));
    assert_eq!(index.retain(|p| p.path != "/p/1"), 1);
    index.save(&RealDisk).unwrap();
    index.tidy(&RealDisk).unwrap();
    assert_eq!(index.parts(), [1, 2], "5 rows for 3 pictures are not yet too many");
    index.retain(|p| p.path != "/p/4");
    index.save(&RealDisk).unwrap();
    index.tidy(&RealDisk).unwrap();
    assert_eq!(index.parts(), [3]);
    drop(index);
    assert_eq!(contents(&folder), expected(&[(2, 9), (3, 3)]));
    let mut names = RealDisk.list(&folder).unwrap();
    names.sort();
    assert_eq!(names, ["half-000003.f16", "index.json", "index.lock", "part-000003.safetensors"]);
}

#[test]
fn what_was_not_listed_is_removed_by_the_next_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = Index::own(&RealDisk, dir.path(), &identity("a"), false).unwrap();
    index.add(picture(1), &features(1)).unwrap();
    index.save(&RealDisk).unwrap();
    index.add(picture(2), &features(2)).unwrap();
    index.write_part(&RealDisk).unwrap(); // and the program ends here
    drop(index);
    assert_eq!(contents(dir.path()), expected(&[(1, 1)]));
    let mut index = Index::own(&RealDisk, dir.path(), &identity("a"), false).unwrap();
    assert!(!dir.path().join("part-000002.safetensors").exists());
    index.add(picture(3), &features(3)).unwrap();
    index.save(&RealDisk).unwrap();
    assert_eq!(contents(dir.path()), expected(&[(1, 1), (3, 3)]));
    let e = Index::own(&RealDisk, dir.path(), &identity("a"), false).err().unwrap();
    assert!(e.to_string().contains("another process"), "{e}");
}

#[test]
fn another_model_or_a_strangers_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("index");
    let mut index = Index::own(&RealDisk, &folder, &identity("a"), false).unwrap();
    index.add(picture(1), &features(1)).unwrap();
    assert!(index.add(picture(2), &[f32::NAN; 6]).is_err());
    assert!(index.add(picture(2), &[0.0; 5]).is_err());
    index.save(&RealDisk).unwrap();
    drop(index);
    assert!(Index::read(&folder).unwrap().check(&identity("b")).is_err());
    let e = Index::own(&RealDisk, &folder, &identity("b"), false).err().unwrap();
    assert!(e.to_string().contains("--rebuild"), "{e}");
    assert_eq!(contents(&folder).len(), 1, "nothing was lost");
    assert!(Index::own(&RealDisk, &folder, &identity("b"), true).unwrap().is_empty());
    assert_eq!(contents(&folder).len(), 1, "the old one until the new one is complete");
    std::fs::write(dir.path().join("part-000001.safetensors"), "mine").unwrap();
    let e = Index::own(&RealDisk, dir.path(), &identity("a"), false).err().unwrap();
    assert!(e.to_string().contains("empty or new folder"), "{e}");
    assert!(dir.path().join("part-000001.safetensors").exists());
}

#[test]
fn damage_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = Index::own(&RealDisk, dir.path(), &identity("a"), false).unwrap();
    index.add(picture(1), &features(1)).unwrap();
    index.save(&RealDisk).unwrap();
    let (list, part) = (dir.path().join(LIST), dir.path().join("part-000001.safetensors"));
    let (good_list, good_part) = (std::fs::read_to_string(&list).unwrap(), std::fs::read(&part).unwrap());
    for end in 0..good_part.len() {
        std::fs::write(&part, &good_part[..end]).unwrap();
        assert!(Index::read(dir.path()).unwrap().part(1).is_err(), "cut at {end}");
    }
    std::fs::remove_file(&part).unwrap();
    assert!(Index::read(dir.path()).is_err());
    for (from, to) in [
        ("\"row\":0", "\"row\":1"),
        ("\"part\":1", "\"part\":7"),
        ("\"format\":2", "\"format\":3"),
        ("\"num_query\":2", "\"num_query\":99999999"),
        ("\"bytes\":1", "\"bytes\":-1"),
        ("}", ""),
    ] {
        std::fs::write(&list, good_list.replacen(from, to, 1)).unwrap();
        assert!(Index::read(dir.path()).is_err(), "{to}");
    }
}

#[test]
fn an_index_built_anew_is_the_old_one_until_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let own = |model: &str, rebuild| Index::own(&RealDisk, dir.path(), &identity(model), rebuild).unwrap();
    let mut index = own("a", false);
    index.add(picture(1), &features(1)).unwrap();
    index.save(&RealDisk).unwrap();
    drop(index);
    let old = Index::read(dir.path()).unwrap();
    let mut anew = own("b", true);
    anew.add(picture(1), &features(5)).unwrap();
    anew.save(&RealDisk).unwrap();
    assert_eq!(contents(dir.path()), expected(&[(1, 1)]));
    drop(anew); // interrupted; continued by the same command
    let mut anew = own("b", true);
    assert_eq!(anew.len(), 1, "what is done stays done");
    anew.add(picture(2), &features(6)).unwrap();
    anew.save(&RealDisk).unwrap();
    assert!(Index::read(dir.path()).unwrap().check(&identity("a")).is_ok());
    anew.publish(&RealDisk).unwrap();
    drop(anew);
    assert_eq!(contents(dir.path()), expected(&[(1, 5), (2, 6)]));
    assert!(Index::read(dir.path()).unwrap().check(&identity("b")).is_ok());
    // Who opened the old one goes on with it, though its files are gone.
    assert!(old.check(&identity("a")).is_ok() && old.part(1).unwrap().features == features(1));
    assert_eq!(own("b", false).list.next, 4);
    // Begun anew and given up: nothing of it stays.
    let mut anew = own("a", true);
    anew.add(picture(9), &features(9)).unwrap();
    anew.save(&RealDisk).unwrap();
    drop(anew);
    drop(own("b", false));
    let mut names = RealDisk.list(dir.path()).unwrap();
    names.sort();
    let parts = ["part-000002.safetensors", "part-000003.safetensors"];
    assert_eq!(
        names,
        [&["half-000002.f16", "half-000003.f16", "index.json", "index.lock"][..], &parts].concat()
    );
    // A number is not used again, even if its part never came into a list.
    assert_eq!(own("b", true).list.next, 5);
}

#[test]
fn a_part_of_another_index_is_not_read() {
    let make = |model: &str, n: u64| {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::own(&RealDisk, dir.path(), &identity(model), false).unwrap();
        index.add(picture(1), &features(n)).unwrap();
        index.save(&RealDisk).unwrap();
        dir
    };
    let (one, model, time) = (make("a", 1), make("b", 1), make("a", 2));
    let name = "part-000001.safetensors";
    for other in [&model, &time] {
        std::fs::copy(other.path().join(name), one.path().join(name)).unwrap();
        let e = Index::read(one.path()).unwrap().part(1).err().unwrap();
        assert!(e.to_string().contains("another index"), "{e}");
    }
    // The older form named neither, and is read.
    let list = std::fs::read_to_string(time.path().join(LIST)).unwrap();
    let mut list: serde_json::Value = serde_json::from_str(&list).unwrap();
    (list["format"], list["parts"]) = (1.into(), serde_json::json!({"1": 1}));
    list.as_object_mut().unwrap().remove("next");
    std::fs::write(time.path().join(LIST), list.to_string()).unwrap();
    assert_eq!(contents(time.path()), expected(&[(1, 2)]));
}

#[test]
fn pictures_of_known_bytes_share_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = Index::own(&RealDisk, dir.path(), &identity("a"), false).unwrap();
    (1..=2).for_each(|n| index.add(picture(n), &features(n)).unwrap());
    index.save(&RealDisk).unwrap();
    let at = |n: u64, path: u64| Picture { path: format!("/p/{path}"), ..picture(n) };
    assert_eq!(index.adopt(&at(1, 7), |p| p.path == "/p/1"), Some(Adopted::Moved));
    assert_eq!(index.adopt(&at(2, 8), |_| false), Some(Adopted::Copied));
    assert_eq!(index.adopt(&at(3, 9), |_| false), None);
    // A known path whose file now has another's bytes; what it had is not known any more.
    assert_eq!(index.adopt(&at(1, 8), |_| true), Some(Adopted::Copied));
    index.add(at(5, 7), &features(5)).unwrap();
    index.save(&RealDisk).unwrap();
    drop(index);
    assert_eq!(contents(dir.path()), expected(&[(2, 2), (7, 5), (8, 1)]));
}

#[test]
fn halves_are_those_of_their_part_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = Index::own(&RealDisk, dir.path(), &identity("a"), false).unwrap();
    (1..=3).for_each(|n| index.add(picture(n), &features(n)).unwrap());
    index.save(&RealDisk).unwrap();
    drop(index);
    let open = || Index::read(dir.path()).unwrap();
    let halves = open().halves(1).unwrap().unwrap();
    let want: Vec<[u8; 2]> =
        (1..=3).flat_map(features).map(|x| half::f16::from_f32(x).to_le_bytes()).collect();
    assert_eq!((halves.of(0..3), halves.rows), (&want[..], 3));
    assert_eq!(halves.of(1..2), &want[6..12]);
    assert!(halves.of(3..4).is_empty());
    // The largest row is 3.375, 3.5, 3.625.
    assert!((halves.norm - (3.375f64.powi(2) + 3.5f64.powi(2) + 3.625f64.powi(2)).sqrt()).abs() < 1e-12);
    assert_eq!(open().row(1, 1).unwrap(), features(2));
    let path = dir.path().join("half-000001.f16");
    let good = std::fs::read(&path).unwrap();
    for end in 0..good.len() {
        std::fs::write(&path, &good[..end]).unwrap();
        assert!(open().halves(1).is_err(), "cut at {end}");
    }
    for at in (good.len() - 36..good.len()).step_by(5) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        assert!(open().halves(1).is_err(), "changed at {at}");
    }
    // Cut short while it is searched: an error, and not the end of the program.
    std::fs::write(&path, &good).unwrap();
    let index = open();
    assert!(index.halves(1).is_ok());
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    assert!(index.halves(1).is_err() && index.row(1, 0).is_err());
    // A part that does not round to its halves.
    std::fs::write(&path, &good).unwrap();
    let part = dir.path().join("part-000001.safetensors");
    let mut bad = std::fs::read(&part).unwrap();
    let last = bad.len() - 2;
    bad[last] ^= 0x40;
    std::fs::write(&part, bad).unwrap();
    assert!(open().row(1, 2).is_err() && open().row(1, 0).is_ok());
    // An index of before has none.
    std::fs::remove_file(&path).unwrap();
    assert!(open().halves(1).unwrap().is_none());
}
