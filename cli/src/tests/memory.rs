//! Memory blocks of Linux, taken and given back by the command.

use gaol_abi::outcome::Reason;

use super::fake::{BLOCK_SIZE, Machine, Request};

/// A cell with RAM of this size, and a second region.
fn cell(machine: &Machine, size: &str) -> String {
    let text = format!(
        "name = \"big\"\ncpus = [2]\nreset-address = 0x0\n\n[[memory]]\nname = \"low\"\nat = 0x0\nsize = \"1 MiB\"\n\
         access = \"rwx\"\nloadable = true\n\n[[memory]]\nname = \"ram\"\nat = 0x40000000\nsize = \"{size}\"\n\
         access = \"rw\"\n"
    );
    machine.write("big.toml", &text)
}

fn offline(machine: &Machine) -> Vec<u64> {
    machine.record.borrow().offline.clone()
}

fn online(machine: &Machine) -> Vec<u64> {
    machine.record.borrow().online.clone()
}

/// What was asked, in short.
fn asked(machine: &Machine) -> Vec<&'static str> {
    let record = machine.record.borrow();
    let name = |request: &Request| match request {
        Request::Create(_) => "create",
        Request::CreateInPieces(_) => "create in pieces",
        Request::Offer(..) => "offer",
        Request::Enable { .. } => "enable",
        _ => "other",
    };
    record.requests.iter().map(name).collect()
}

#[test]
fn large_memory_comes_in_blocks_and_the_rest_in_pieces() {
    let machine = Machine::enabled();
    machine.add_memory_blocks(8);
    machine.run_short(Reason::CellMemory, 40 << 20, 1);
    let file = cell(&machine, "300 MiB");
    machine.run(&["cell", "create", &file]).text();
    assert_eq!(asked(&machine), ["create", "offer", "create in pieces"]);
    assert_eq!(offline(&machine), [6, 5]);
    assert_eq!(online(&machine), [0; 0]);
    let offer = machine.record.borrow().requests[1].clone();
    assert_eq!(
        offer,
        Request::Offer(vec![6 * BLOCK_SIZE, 5 * BLOCK_SIZE], BLOCK_SIZE)
    );
}

#[test]
fn what_is_missing_then_comes_in_another_block() {
    let machine = Machine::enabled();
    machine.add_memory_blocks(8);
    machine.run_short(Reason::CellMemory, 40 << 20, 1);
    machine.run_short(Reason::CellMemory, 290 << 20, 1);
    let file = cell(&machine, "300 MiB");
    machine.run(&["cell", "create", &file]).text();
    assert_eq!(offline(&machine), [6, 5, 4]);
    assert_eq!(
        asked(&machine)[2..],
        ["create in pieces", "offer", "create in pieces"]
    );
}

#[test]
fn small_memory_is_tried_in_pieces_before_a_block() {
    let machine = Machine::enabled();
    machine.add_memory_blocks(8);
    machine.run_short(Reason::CellMemory, 2 << 20, 1);
    let file = cell(&machine, "32 MiB");
    machine.run(&["cell", "create", &file]).text();
    assert_eq!(asked(&machine), ["create", "create in pieces"]);
    assert_eq!(offline(&machine), [0; 0]);

    machine.record.borrow_mut().requests.clear();
    machine.run_short(Reason::CellMemory, 2 << 20, 1);
    machine.run_short(Reason::CellMemory, 8 << 20, 1);
    machine.run(&["cell", "create", &file]).text();
    assert_eq!(
        asked(&machine),
        ["create", "create in pieces", "offer", "create in pieces"]
    );
    assert_eq!(offline(&machine), [6]);
}

#[test]
fn blocks_that_do_not_go_are_replaced() {
    let machine = Machine::enabled();
    machine.add_memory_blocks(8);
    machine.record.borrow_mut().stuck = vec![6, 4];
    machine.run_short(Reason::CellMemory, 0, 1);
    let file = cell(&machine, "300 MiB");
    machine.run(&["cell", "create", &file]).text();
    assert_eq!(offline(&machine), [5, 3]);
}

#[test]
fn what_was_taken_in_vain_is_given_back_and_the_shortage_told() {
    let machine = Machine::enabled();
    machine.add_memory_blocks(8);
    for _ in 0..9 {
        machine.run_short(Reason::CellMemory, 212 << 20, 1);
    }
    let file = cell(&machine, "300 MiB");
    assert_eq!(
        machine.run(&["cell", "create", &file]).failure(),
        "gaol: cannot create cell \"big\": Linux could not give 300 MiB for memory \"ram\": 212 MiB is all that was \
         found\n  End programs that use much memory, or boot Linux with `memmap=300M$0x2d400000` (in a GRUB file: \\$) \
         and set `physical = 0x2d400000` for this memory.\n"
    );
    // Three would do; one more than that was the limit.
    assert_eq!(offline(&machine).len(), 4);
    let mut back = online(&machine);
    back.sort_unstable();
    assert_eq!(back, [3, 4, 5, 6]);
}

#[test]
fn no_block_is_taken_for_more_than_there_is() {
    let machine = Machine::enabled();
    machine.add_memory_blocks(8);
    machine.run_short(Reason::CellMemory, 700 << 20, 1);
    machine.run_short(Reason::CellMemory, 700 << 20, 1);
    let file = cell(&machine, "2 GiB");
    let text = machine.run(&["cell", "create", &file]).failure();
    assert!(text.contains("700 MiB is all that was found"), "{text}");
    assert_eq!(asked(&machine), ["create", "create in pieces"]);
    assert_eq!(offline(&machine), [0; 0]);
}

#[test]
fn the_shortage_is_told_where_no_block_can_be_taken() {
    let machine = Machine::enabled();
    machine.run_short(Reason::CellMemory, 0, 1);
    machine.run_short(Reason::CellMemory, 0, 1);
    let file = cell(&machine, "1 GiB");
    assert_eq!(
        machine.run(&["cell", "create", &file]).failure(),
        "gaol: cannot create cell \"big\": Linux could not give 1 GiB for memory \"ram\": nothing of it was found\n  \
         End programs that use much memory. This machine has no place where 1 GiB could be reserved at boot, or Gaol \
         may not see it.\n"
    );
}

#[test]
fn the_hypervisor_gets_adjacent_blocks() {
    let machine = Machine::new();
    machine.add_memory_blocks(8);
    machine.record.borrow_mut().stuck = vec![6, 4];
    machine.run_short(Reason::HypervisorMemory, 2 << 20, 0);
    let file = machine.write("system.toml", "[hypervisor]\nmemory = \"200 MiB\"\n");
    machine.run(&["enable", &file]).text();
    assert_eq!(asked(&machine).first(), Some(&"enable"));
    assert_eq!(asked(&machine).last(), Some(&"enable"));
    // 5 was of no use without a neighbour; in the end nothing is the hypervisor's here.
    assert_eq!(offline(&machine), [5, 2, 3]);
    assert_eq!(online(&machine), [5, 2, 3]);
}

#[test]
fn the_next_command_gives_back_what_a_killed_one_has_left() {
    let machine = Machine::enabled();
    machine.add_memory_blocks(8);
    let left = "0x18000000 0x8000000 used\n0x20000000 0x8000000 idle\n0x28000000 0x8000000 held\n";
    machine.write("sys/devices/gaol/memory_blocks", left);
    machine.run(&["cell", "list"]).text();
    assert_eq!(online(&machine), [4]);
}

#[test]
fn it_is_told_when_memory_can_not_be_given_back() {
    let machine = Machine::enabled();
    machine.add_memory_blocks(8);
    machine.write(
        "sys/devices/gaol/memory_blocks",
        "0x20000000 0x8000000 idle\n",
    );
    machine.record.borrow_mut().stuck = vec![4];
    let ran = machine.run(&["cell", "list"]);
    assert_eq!(ran.status, 0);
    assert_eq!(
        ran.errors,
        "gaol: 128 MiB of memory at 0x20000000 could not be given back to Linux: Device or resource busy; the next \
         command of gaol tries again\n"
    );
}
