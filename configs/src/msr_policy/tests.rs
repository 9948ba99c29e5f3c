extern crate std;

use std::fs;
use std::path::Path;
use std::string::{String, ToString};
use std::vec::Vec;
use std::{env, format};

use super::*;

#[test]
fn rows_are_in_order_and_each_has_a_reason() {
    for pair in ROWS.windows(2) {
        assert!(pair[0].last < pair[1].first, "{:#x}", pair[1].first);
    }
    for (row, (name, why)) in ROWS.iter().zip(TEXTS) {
        assert!(row.first <= row.last);
        assert!(!name.is_empty() && why.ends_with('.'), "{name}: {why}");
    }
    // Each is in a range that has bits, on VMX or SVM; what VMX has none for exits always there.
    let covered = |register: u32| {
        register < 0x2000
            || (0xc000_0000..0xc000_2000).contains(&register)
            || (0xc001_0000..0xc001_2000).contains(&register)
    };
    assert!(
        ROWS.iter()
            .all(|row| covered(row.first) && covered(row.last))
    );
}

#[test]
fn each_register_has_the_row_that_it_is_in() {
    let all = (0..0x4000u32)
        .chain(0xbfff_f000..0xc000_4000)
        .chain(0xc001_0000..0xc001_2000)
        .chain(u32::MAX - 9..=u32::MAX);
    for register in all {
        let mut rows = ROWS
            .iter()
            .filter(|row| (row.first..=row.last).contains(&register));
        assert_eq!(
            policy(register),
            rows.next().unwrap_or(&OTHERS),
            "{register:#x}"
        );
        assert!(rows.next().is_none());
    }
}

#[test]
fn what_is_written_without_an_exit_is_given_only_where_it_can_be_put_back() {
    for row in &ROWS {
        // What a cell can be given to write is kept and put back by number; that works neither for what the hypervisor looks
        // at nor for what it makes up.
        if row.grant == Grant::All {
            assert!(
                row.cell.write.passes() || row.cell.write == Write::Refuse,
                "{row:x?}"
            );
            assert!(row.cell.read != Read::Virtual);
        }
        // Masks are for the root: a cell's come from its configuration.
        assert!(!matches!(row.cell.write, Write::Masked(_)));
        assert!(!matches!(row.root.write, Write::Own | Write::Switched));
        // A register that exits in every guest has the same meaning in both.
        assert_eq!(
            row.cell.write == Write::Virtual,
            row.root.write == Write::Virtual
        );
    }
    let own: Vec<u32> = own_registers().collect();
    assert!(own.contains(&0xc000_0102) && own.contains(&0x48) && own.contains(&0x6e0));
}

/// What nobody may ever have, written down a second time: whatever the table says, these are not for a cell to write.
#[test]
fn dangerous_registers_are_not_given_to_cells() {
    for register in [
        0x1b,
        0x3a,
        0x79,
        0x9b,
        0x9e,
        0x10b,
        0x150,
        0x1a0,
        0x1b2,
        0x1d9,
        0x1f2,
        0x1f3,
        0x200,
        0x277,
        0x2ff,
        0x3f1,
        0x400,
        0x480,
        0x492,
        0x493,
        0x560,
        0x570,
        0x600,
        0x610,
        0x6a2,
        0x770,
        0x772,
        0x830,
        0x981,
        0xc80,
        0xc8f,
        0xc90,
        0xd0f,
        0xd50,
        0xda0,
        0x17d0,
        0xc000_0080,
    ] {
        assert!(policy(register).grant < Grant::All, "{register:#x}");
    }
    for register in [0x199, 0x1b0, 0x774, 0x1a4, 0x1ad, 0xe2] {
        assert_eq!(policy(register).grant, Grant::All, "{register:#x}");
    }
}

fn read(rule: Read) -> &'static str {
    match rule {
        Read::Pass => "reads",
        Read::Virtual => "reads what the hypervisor says",
        Read::Refuse => "–",
    }
}

fn write(rule: Write) -> String {
    match rule {
        Write::Pass | Write::Switched => "writes".to_string(),
        Write::Own => "writes; cleared at hand-over".to_string(),
        Write::Checked => "writes what is harmless".to_string(),
        Write::Masked(mask) => format!("writes all but {:#x}", !mask),
        Write::Virtual => "writes are kept, without effect".to_string(),
        Write::Ignore => "writes have no effect".to_string(),
        Write::Refuse => "–".to_string(),
    }
}

fn both(rule: Rule) -> String {
    match (read(rule.read), write(rule.write)) {
        ("–", write) if write == "–" => "#GP".to_string(),
        ("–", write) => write,
        (read, write) if write == "–" => format!("{read}; writing: #GP"),
        (read, write) => format!("{read}, {write}"),
    }
}

fn page() -> String {
    let mut page = String::from(
        "# Model-specific registers\n\n\
         What becomes of RDMSR and WRMSR in a cell and in the root cell, register by register. This page is written from the\n\
         table that the hypervisor goes by (`configs/src/msr_policy/rows.rs`); a test keeps the two alike.\n\n\
         *In a cell*, registers that are not listed raise #GP, and a record is kept, unless the cell's configuration has an entry\n\
         `[[msrs]]` for them. *In the root*, they are Linux'; a strict root writes what its configuration lists and what every\n\
         cell may write. Registers beyond the two ranges that the processor's bitmap has (0 to 0x1fff, 0xc0000000 to 0xc0001fff),\n\
         AMD's own among them, always exit: a cell gets #GP, the root what the processor answers.\n\n\
         The last column but one says what of a register a configuration can give to a cell.\n\n\
         | registers | name | in a cell | in the root | can be given | why |\n|---|---|---|---|---|---|\n",
    );
    for (row, (name, why)) in ROWS.iter().zip(TEXTS) {
        let numbers = if row.first == row.last {
            format!("{:#x}", row.first)
        } else {
            format!("{:#x} to {:#x}", row.first, row.last)
        };
        let grant = match row.grant {
            Grant::Never | Grant::Nothing => "no",
            Grant::Reads => "reading",
            Grant::All => "yes",
        };
        page.push_str(&format!(
            "| {numbers} | {name} | {} | {} | {grant} | {why} |\n",
            both(row.cell),
            both(row.root)
        ));
    }
    page
}

#[test]
fn the_page_of_registers_is_current() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/registers.md");
    let expected = page();
    if env::var_os("UPDATE").is_some() {
        fs::write(&file, &expected).unwrap();
    }
    let is_current = fs::read_to_string(&file).is_ok_and(|text| text == expected);
    assert!(
        is_current,
        "docs/registers.md is not current: UPDATE=1 cargo test -p gaol-config msr_policy"
    );
}
