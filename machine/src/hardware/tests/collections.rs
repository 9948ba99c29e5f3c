//! The collections that come with Gaol.

use std::path::Path;

use crate::hardware::{Facts, Status, check, table};
use crate::source::Source;

#[test]
fn every_collection_is_judged_and_what_it_lacks_is_named() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("collections");
    let mut judged = 0;
    for entry in std::fs::read_dir(directory).unwrap() {
        let file = entry.unwrap().path();
        if !file.to_string_lossy().contains(".tar") {
            continue;
        }
        let facts = Facts::read(&Source::open(&file).unwrap());
        let rows = check(&facts);
        let text = table(&rows, false);
        assert_eq!(
            facts.present.as_ref().map(Vec::len),
            Ok(facts.cpus.len()),
            "{text}"
        );
        assert!(rows.len() > 40, "{text}");
        for row in rows.iter().filter(|row| row.status != Status::Ok) {
            assert!(!row.finding.is_empty() && !row.remedy.is_empty(), "{row:?}");
        }
        // Nothing is measured on a machine that is elsewhere.
        let smi = rows.iter().find(|row| row.key == "smi").unwrap();
        assert_eq!(smi.status, Status::Unknown, "{smi:?}");
        judged += 1;
    }
    assert!(judged >= 3, "{judged}");
}
