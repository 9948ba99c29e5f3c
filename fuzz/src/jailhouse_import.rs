//! Configurations of Jailhouse: as they are given, and with the head of each kind and revision.

use gaol_config::compile::{Cell, System};
use gaol_config::jailhouse::{Kind, import};

use crate::configuration_toml::is_well_told;
use crate::put;

/// Signature, architecture and revision of both kinds, of revision 13 and 14.
const HEADS: [&[u8; 8]; 4] = [
    b"JHSYST\x0d\0",
    b"JHCELL\x0d\0",
    b"JHSYS\0\x0e\0",
    b"JHCLL\0\x0e\0",
];

/// Imports a file; returns whether what came out is one of Gaol's.
fn import_one(bytes: &[u8]) -> bool {
    let import = match import("fuzz.cell", bytes) {
        Ok(import) => import,
        Err(problem) => {
            is_well_told(&problem);
            return false;
        }
    };
    let compiled = match import.kind {
        Kind::System => System::from_toml("system.toml", &import.toml).map(drop),
        Kind::Cell => Cell::from_toml("cell.toml", &import.toml).map(drop),
    };
    assert_eq!(compiled.is_ok(), import.is_accepted, "{}", import.toml);
    assert!(import.is_accepted || !import.notes.is_empty());
    import.is_accepted
}

/// The bytes as a file of each kind.
pub fn run(bytes: &[u8]) {
    import_one(bytes);
    let mut bytes = bytes.to_vec();
    for head in HEADS {
        put(&mut bytes, 0, head);
        import_one(&bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_are_imported() {
        assert!(import_one(include_bytes!(
            "../corpus/jailhouse_import/cell-13"
        )));
        assert!(import_one(include_bytes!(
            "../corpus/jailhouse_import/cell-14"
        )));
        assert!(import_one(include_bytes!(
            "../corpus/jailhouse_import/system-14"
        )));
    }
}
