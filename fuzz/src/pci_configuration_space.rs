//! PCI functions as Linux shows them. The bytes are functions one after the other: segment and bus, device and function
//! (2 bytes), a byte for what else there is, 256 or 4096 bytes of configuration space, and the BARs (a byte with their
//! number, then 3 bytes each).

use std::fmt::Write;

use gaol_machine::pci::Pci;
use gaol_machine::source::{Source, Tree};

use crate::machine_collection::is_well_told;

/// The configuration space has all of its 4096 bytes.
const IS_EXTENDED: u8 = 1;
/// Linux has the function in a group, the number of which is in the upper bits.
const HAS_GROUP: u8 = 2;
/// Linux does not tell of its BARs.
const NO_RESOURCES: u8 = 4;
/// It is in segment 1.
const OTHER_SEGMENT: u8 = 8;

/// Takes bytes from the front; zeros when there are too few.
fn take(bytes: &mut &[u8], count: usize) -> Vec<u8> {
    let (taken, rest) = bytes.split_at(count.min(bytes.len()));
    *bytes = rest;
    let mut taken = taken.to_vec();
    taken.resize(count, 0);
    taken
}

/// A line of the file `resource` of three bytes: kind, place, size.
fn resource(bar: &[u8]) -> String {
    let [kind, place, size] = *bar else {
        return String::new();
    };
    let flags = [0u64, 0x101, 0x200, 0x2200, 0x14_2204, 0x40200][usize::from(kind % 6)];
    let first = u64::from(place) << (12 + u32::from(kind >> 4));
    let last = first.wrapping_add((1 << (size % 64)) - 1);
    let mut line = String::new();
    let _ = write!(line, "{first:#018x} {last:#018x} {flags:#018x}");
    line
}

fn add_function(tree: &mut Tree, bytes: &mut &[u8]) {
    let header = take(bytes, 3);
    let [bus, function, what] = header[..] else {
        return;
    };
    let segment = u16::from(what & OTHER_SEGMENT != 0);
    let size = if what & IS_EXTENDED != 0 { 4096 } else { 256 };
    let config = take(bytes, size);
    let name = format!(
        "{segment:04x}:{bus:02x}:{:02x}.{}",
        function >> 3,
        function & 7
    );
    let directory = format!("/sys/bus/pci/devices/{name}");
    tree.insert_file(&format!("{directory}/config"), config);
    tree.insert_file(&format!("{directory}/vendor"), "0x8086\n");
    tree.insert_file(&format!("{directory}/device"), "0x100e\n");
    if what & HAS_GROUP != 0 {
        let group = format!("../../../../kernel/iommu_groups/{}", what >> 4);
        tree.insert_link(&format!("{directory}/iommu_group"), &group);
    }
    if what & NO_RESOURCES == 0 {
        let count = usize::from(take(bytes, 1)[0] % 8);
        let bars = take(bytes, 3 * count);
        let lines: Vec<String> = bars.chunks(3).map(resource).collect();
        tree.insert_file(&format!("{directory}/resource"), lines.join("\n"));
    }
}

/// The bytes as the functions of a machine.
pub fn run(mut bytes: &[u8]) {
    let mut tree = Tree::default();
    while !bytes.is_empty() {
        add_function(&mut tree, &mut bytes);
    }
    let mut problems = Vec::new();
    let pci = Pci::read(&Source::tree(tree), &mut problems);
    problems.iter().for_each(is_well_told);
    for function in &pci.functions {
        let found = pci.get(function.address);
        assert_eq!(found, Some(function));
        assert!(!function.id().is_empty());
        assert!(pci.is_at_or_behind(function.address, function.address));
        let _ = pci.parent(function.address);
        let mut group = pci.group(function.group);
        assert!(group.any(|other| other.address == function.address));
        for bar in &function.bars {
            assert!(bar.index < 6 && bar.span.start() <= bar.span.last());
        }
    }
}
