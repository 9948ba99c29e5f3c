//! Small images, made here, in which each fault is there to be found.

use std::ops::Range;

use iced_x86::code_asm::*;

use super::check::{is_panic, no_panic, no_unexplained};
use super::graph::{Explained, Graph};
use super::symbols::symbol_file;
use super::{Image, Symbol};

const BASE: u64 = 0xffff_ffff_8000_0000;
/// Where constants lie: slots with addresses of functions, and jump tables.
const DATA: u64 = BASE + 0x1000;

/// An image of functions that are each 64 bytes apart, and of constants.
struct Builder {
    text: Vec<u8>,
    symbols: Vec<Symbol>,
    data: Vec<u8>,
}

/// Address of the function of this number.
fn at(number: u64) -> u64 {
    BASE + number * 64
}

impl Builder {
    fn new() -> Self {
        Self {
            text: Vec::new(),
            symbols: Vec::new(),
            data: vec![0; 256],
        }
    }

    fn function(mut self, name: &str, code: impl FnOnce(&mut CodeAssembler)) -> Self {
        let start = at(self.symbols.len() as u64);
        let mut assembler = CodeAssembler::new(64).unwrap();
        code(&mut assembler);
        let bytes = assembler.assemble(start).unwrap();
        assert!(bytes.len() <= 64);
        self.symbols.push(Symbol {
            name: name.to_owned(),
            range: start..start + bytes.len() as u64,
        });
        self.text.extend(&bytes);
        // Padding is INT3, as the linker's.
        self.text.resize(self.symbols.len() * 64, 0xcc);
        self
    }

    fn word(mut self, offset: usize, value: u64) -> Self {
        self.data[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn distance(mut self, offset: usize, value: i32) -> Self {
        self.data[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn image(self) -> Image {
        let text: Range<u64> = BASE..BASE + self.text.len() as u64;
        Image::new(
            vec![(BASE, self.text), (DATA, self.data)],
            self.symbols,
            &text,
        )
        .unwrap()
    }

    fn graph(self) -> Graph {
        Graph::of(&self.image()).unwrap()
    }
}

fn ends(assembler: &mut CodeAssembler) {
    assembler.ret().unwrap();
}

fn calls(number: u64) -> impl FnOnce(&mut CodeAssembler) {
    move |assembler| {
        assembler.call(at(number)).unwrap();
        assembler.ret().unwrap();
    }
}

const PANIC: &str = "core::panicking::panic_bounds_check";

#[test]
fn the_shortest_way_to_a_panic_is_told() {
    let graph = Builder::new()
        .function("vm_exit", |assembler| {
            assembler.call(at(1)).unwrap();
            assembler.call(at(2)).unwrap();
            assembler.ret().unwrap();
        })
        .function("long", calls(3))
        .function("short", calls(4))
        .function("longer", calls(4))
        .function(PANIC, ends)
        .graph();
    let error = no_panic(&graph, &[0], "the exit path")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        format!("the exit path can panic: vm_exit → short → {PANIC}")
    );
    // Not from everywhere: what ends before is well.
    assert!(no_panic(&graph, &[4], "it").is_err());
    let well = Builder::new()
        .function("vm_exit", calls(1))
        .function("fine", ends)
        .function(PANIC, ends)
        .graph();
    assert_eq!(no_panic(&well, &[0], "the exit path").unwrap(), 2);
}

#[test]
fn jumps_slots_and_addresses_lead_on() {
    let ways: [fn(&mut CodeAssembler); 6] = [
        |assembler| assembler.jmp(at(1)).unwrap(),
        |assembler| {
            assembler.test(eax, eax).unwrap();
            assembler.je(at(1)).unwrap();
            assembler.ret().unwrap();
        },
        |assembler| {
            assembler.call(qword_ptr(DATA)).unwrap();
            assembler.ret().unwrap();
        },
        |assembler| {
            assembler.mov(rbx, qword_ptr(DATA)).unwrap();
            assembler.call(rbx).unwrap();
            assembler.ret().unwrap();
        },
        |assembler| {
            assembler.lea(rax, qword_ptr(at(1))).unwrap();
            assembler.ret().unwrap();
        },
        |assembler| {
            assembler.mov(rax, at(1)).unwrap();
            assembler.ret().unwrap();
        },
    ];
    for (index, way) in ways.into_iter().enumerate() {
        let graph = Builder::new()
            .function("vm_exit", way)
            .function(PANIC, ends)
            .word(0, at(1))
            .graph();
        assert!(no_panic(&graph, &[0], "it").is_err(), "way {index}");
        assert!(no_unexplained(&graph, &[0], "it").is_ok(), "way {index}");
    }
}

#[test]
fn jump_tables_are_followed_and_other_pointers_are_not_trusted() {
    let table = |assembler: &mut CodeAssembler| {
        assembler.lea(rcx, qword_ptr(DATA)).unwrap();
        assembler.movsxd(rax, dword_ptr(rcx + rax * 4)).unwrap();
        assembler.add(rax, rcx).unwrap();
        // The table's address is not needed any more.
        assembler.mov(rcx, 5u64).unwrap();
        assembler.jmp(rax).unwrap();
        assembler.call(at(1)).unwrap();
        assembler.ret().unwrap();
    };
    let inside = (at(0) + 10).wrapping_sub(DATA) as i32;
    let graph = Builder::new()
        .function("vm_exit", table)
        .function("other", ends)
        .distance(0, inside)
        .graph();
    assert!(graph.nodes[0].indirect.is_empty());
    assert!(graph.nodes[0].calls.contains_key(&1));
    // A table without an entry into the function is none.
    let mut graph = Builder::new()
        .function("vm_exit", table)
        .function("other", ends)
        .graph();
    let error = no_unexplained(&graph, &[0], "it").unwrap_err().to_string();
    assert!(error.contains("vm_exit"), "{error}");
    let name = "vm_exit";
    graph
        .explain(&[Explained {
            name,
            to: Err("known"),
        }])
        .unwrap();
    assert!(no_unexplained(&graph, &[0], "it").is_ok());
}

#[test]
fn an_explanation_leads_on_or_is_refused() {
    let by_register = || {
        Builder::new()
            .function("vm_exit", |assembler| {
                assembler.sub(rsp, 24).unwrap();
                assembler.call(rdx).unwrap();
                assembler.add(rsp, 24).unwrap();
                assembler.ret().unwrap();
            })
            .function("<One as Registers>::read", calls(3))
            .function("<Two as Registers>::read", ends)
            .function(PANIC, ends)
            .graph()
    };
    assert!(no_unexplained(&by_register(), &[0], "it").is_err());
    let explained = |name, part| {
        let mut graph = by_register();
        graph
            .explain(&[Explained { name, to: Ok(part) }])
            .map(|()| graph)
    };
    let graph = explained("vm_exit", "as Registers>").unwrap();
    assert!(no_unexplained(&graph, &[0], "it").is_ok());
    assert!(no_panic(&graph, &[0], "it").is_err());
    assert_eq!(graph.deepest(0, &[]).unwrap().0, 24 + 8 + 8);
    let other = explained("vm_exit", "Two as").unwrap();
    assert!(no_panic(&other, &[0], "it").is_ok());
    assert!(explained("vm_exit", "nothing").is_err());
    assert!(explained("nobody", "Two as").is_err());
}

#[test]
fn the_stack_is_added_up_along_the_deepest_way() {
    let graph = Builder::new()
        .function("vm_exit", |assembler| {
            assembler.push(rbx).unwrap();
            assembler.sub(rsp, 40).unwrap();
            assembler.call(at(1)).unwrap();
            assembler.add(rsp, 40).unwrap();
            assembler.pop(rbx).unwrap();
            // A tail call: nothing of this function is left.
            assembler.jmp(at(2)).unwrap();
        })
        .function("deep", |assembler| {
            assembler.sub(rsp, 100).unwrap();
            assembler.add(rsp, 100).unwrap();
            assembler.ret().unwrap();
        })
        .function("tail", |assembler| {
            assembler.sub(rsp, 120).unwrap();
            assembler.add(rsp, 120).unwrap();
            assembler.ret().unwrap();
        })
        .graph();
    let (depth, chain) = graph.deepest(0, &[]).unwrap();
    assert_eq!((depth, chain), (8 + 40 + 8 + 100, vec!["vm_exit", "deep"]));
}

#[test]
fn code_behind_a_return_has_the_depth_of_what_jumps_there() {
    let graph = Builder::new()
        .function("vm_exit", |assembler| {
            let mut other = assembler.create_label();
            assembler.sub(rsp, 40).unwrap();
            assembler.test(eax, eax).unwrap();
            assembler.je(other).unwrap();
            assembler.add(rsp, 40).unwrap();
            assembler.ret().unwrap();
            assembler.set_label(&mut other).unwrap();
            assembler.call(at(1)).unwrap();
            assembler.add(rsp, 40).unwrap();
            assembler.ret().unwrap();
        })
        .function("leaf", ends)
        .graph();
    assert_eq!(graph.nodes[0].calls[&1], 48);
}

#[test]
fn what_runs_on_another_stack_takes_none_of_this_one() {
    let graph = Builder::new()
        .function("stubs", |assembler| {
            assembler.push(rax).unwrap();
            assembler.mov(rsp, rdi).unwrap();
            assembler.call(at(1)).unwrap();
            assembler.ret().unwrap();
        })
        .function("resume", |assembler| {
            assembler.sub(rsp, 100).unwrap();
            assembler.call(at(2)).unwrap();
            assembler.add(rsp, 100).unwrap();
            assembler.ret().unwrap();
        })
        .function(PANIC, ends)
        .graph();
    assert_eq!(graph.deepest(0, &[]).unwrap().0, 8);
    assert_eq!(graph.deepest(1, &[]).unwrap().0, 108);
    // It is reached all the same.
    assert!(no_panic(&graph, &[0], "it").is_err());
}

#[test]
fn recursion_is_an_error_unless_it_has_a_bound() {
    let graph = Builder::new()
        .function("vm_exit", calls(1))
        .function("walk", |assembler| {
            assembler.push(rbx).unwrap();
            assembler.call(at(1)).unwrap();
            assembler.call(at(2)).unwrap();
            assembler.pop(rbx).unwrap();
            assembler.ret().unwrap();
        })
        .function("leaf", ends)
        .graph();
    let error = graph.deepest(0, &[]).unwrap_err().to_string();
    assert_eq!(error, "recursion: walk → walk");
    let (depth, _) = graph.deepest(0, &[("walk", 5)]).unwrap();
    assert_eq!(depth, 8 + 5 * 16);
    let in_a_circle = Builder::new()
        .function("vm_exit", calls(1))
        .function("other", calls(0))
        .graph();
    assert!(in_a_circle.deepest(0, &[("vm_exit", 5)]).is_err());
}

#[test]
fn a_jump_to_nowhere_is_an_error() {
    let image = Builder::new()
        .function("vm_exit", |assembler| assembler.call(at(9)).unwrap())
        .image();
    assert!(Graph::of(&image).is_err());
}

#[test]
fn names_of_panics_are_known() {
    for name in [
        PANIC,
        "core::panicking::panic_fmt",
        "core::option::unwrap_failed",
        "core::option::expect_failed",
        "core::result::unwrap_failed",
        "core::slice::index::slice_index_fail",
        "core::slice::index::slice_end_index_len_fail",
        "core::str::slice_error_fail",
        "__rustc::rust_begin_unwind",
        "alloc::alloc::handle_alloc_error",
        "core::slice::copy_from_slice_impl::len_mismatch_fail",
        "core::cell::panic_already_borrowed",
    ] {
        assert!(is_panic(name), "{name}");
    }
    for name in ["gaol_hypervisor::cell::lifecycle::has_failed", "vm_exit"] {
        assert!(!is_panic(name), "{name}");
    }
}

#[test]
fn symbols_reach_to_the_next_and_labels_inside_are_left_out() {
    let symbol = |name: &str, range: Range<u64>| Symbol {
        name: name.to_owned(),
        range,
    };
    let image = Image::new(
        vec![],
        vec![
            symbol("second", BASE + 0x20..BASE + 0x30),
            symbol("label", BASE + 0x24..BASE + 0x24),
            symbol("assembly", BASE + 0x10..BASE + 0x10),
            symbol("data", BASE + 0x1000..BASE + 0x1008),
        ],
        &(BASE..BASE + 0x100),
    )
    .unwrap();
    assert_eq!(
        symbol_file(&image),
        "ffffffff80000010 10 assembly\nffffffff80000020 10 second\n"
    );
    assert_eq!(image.function_at(BASE + 0x2f), Some(1));
    assert_eq!(image.function_at(BASE + 0x30), None);
    assert_eq!(image.function_from(BASE + 0x2f), None);
}
