//! What a cell does to a PCI function of its own, on the model of the hardware that the hypervisor's tests have. The first
//! byte is the shape of the function; each operation behind it has 12 bytes: what, width, place (2 bytes), value.

#[path = "../../hypervisor/tests/pci/harness.rs"]
#[allow(missing_docs, dead_code)]
mod harness;
#[path = "../../hypervisor/tests/pci/model.rs"]
#[allow(missing_docs, dead_code)]
mod model;

use harness::{Harness, store};
use model::{Device, ENTRIES, Shape, TABLE};

/// Bytes of an operation.
const LENGTH: usize = 12;
/// Most operations of one input: more show nothing new, and take long.
const MOST: usize = 64;

/// The bytes as operations; what must be true of the function is looked at after each of its writes to the hardware.
pub fn run(bytes: &[u8]) {
    let Some((shape, operations)) = bytes.split_first() else {
        return;
    };
    let shape = Shape::numbered(*shape);
    let before = Device::new(shape).set_up();
    let store = store();
    let harness = Harness::of_cell(before.clone(), Some(shape), &store);
    let mut harness = harness.expect("the function can be had");
    for operation in operations.chunks_exact(LENGTH).take(MOST) {
        let (head, value) = operation.split_at(4);
        let [what, width, low, high] = head else {
            continue;
        };
        let width = 1 << (width & 3);
        let place = u16::from_le_bytes([*low, *high]);
        let value = value
            .iter()
            .rev()
            .fold(0, |value, byte| value << 8 | u64::from(*byte));
        let at = TABLE - 16 + u64::from(place) % (16 * ENTRIES + 32);
        match what % 5 {
            0 => harness.write(place & 0xff, width, value),
            1 => harness.write(place, width, value),
            2 => {
                harness.read(place, width);
            }
            3 => drop(harness.read_table(at, width).ok()),
            _ => drop(harness.write_table(at, width, value).ok()),
        }
    }
    harness.check_others();
    harness.give_back(&before);
}
