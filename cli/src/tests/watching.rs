//! `cell list`, `cell stats`, `cell histogram`.

use std::io;

use gaol_abi::exit::COUNTER_KICKS;
use gaol_abi::latency::{Results, SIGNATURE};
use gaol_abi::public::{
    DEVICE_FAULT_READ, FaultRecord, HypervisorFaultKind, RootFailureKind, TraceEvent, TraceKind,
};
use serde_json::json;
use zerocopy::{FromZeros, IntoBytes};

use super::fake::{Machine, Request};

#[test]
fn list_shows_all_cells() {
    let machine = Machine::enabled();
    assert_eq!(
        machine.run(&["cell", "list"]).text(),
        "ID  NAME     STATE    CPUS  FAILED\n \
          0  root     running  0-2\n \
          1  latency  running  3\n"
    );
    let json = machine.run(&["cell", "list", "--json"]).json();
    assert_eq!(
        (&json["enabled"], &json["pool_total"], &json["pool_used"]),
        (&true.into(), &700.into(), &83.into())
    );
    assert_eq!(
        json["cells"][1],
        json!({ "id": 1, "name": "latency", "state": "running", "cpus": [3], "cpus_failed": [], "unprotected_dma": false, "functions": [], "faults": [] })
    );
}

#[test]
fn list_tells_whose_functions_are_whose() {
    let machine = Machine::enabled();
    machine.write(
        "sys/devices/gaol/pci_functions",
        "0000:00:03.0 e1000e held latency\n0000:00:04.0 - gone latency\n0000:01:00.0 nvme lost \n",
    );
    let text = machine.run(&["cell", "list"]).text();
    for words in [
        "Cell \"latency\" has PCI function 0000:00:03.0, taken from Linux' driver e1000e.",
        "PCI function 0000:00:04.0 of \"latency\" was removed from the machine",
        "PCI function 0000:01:00.0 did not come back from its cell",
    ] {
        assert!(text.contains(words), "{text}");
    }
    let json = machine.run(&["cell", "list", "--json"]).json();
    let functions = &json["cells"][1]["functions"];
    assert_eq!(functions[0]["driver"], "e1000e");
    assert_eq!(functions[1]["state"], "gone");
    assert_eq!(json["lost_functions"][0]["function"], "0000:01:00.0");
}

#[test]
fn list_tells_whose_dma_nothing_holds() {
    let machine = Machine::enabled();
    machine.publish_all(|system| system.unprotected_cells = 1 << 1, |_, _| ());
    let text = machine.run(&["cell", "list"]).text();
    let words = "Cell \"latency\" can reach all memory of the machine by DMA";
    assert!(text.contains(words), "{text}");
    assert!(!text.contains("Cell \"root\""), "{text}");
    let json = machine.run(&["cell", "list", "--json"]).json();
    assert_eq!(json["cells"][0]["unprotected_dma"], false);
    assert_eq!(json["cells"][1]["unprotected_dma"], true);
}

#[test]
fn list_tells_why_cpus_were_stopped() {
    let machine = Machine::enabled();
    machine.add_cell(2, "violator", "failed", "1-2", "2", "");
    machine.publish(|cpu, page| {
        if cpu == 2 {
            page.fault = FaultRecord {
                count: 1,
                cell: 2,
                exit_reason: 48,
                instruction_length: 3,
                qualification: 0x181,
                address: 0x20_0000,
                rip: 0x1234,
                instruction: [0x48, 0x8b, 0x07, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                ..FaultRecord::new_zeroed()
            };
        }
    });
    assert_eq!(
        machine.run(&["cell", "list"]).text(),
        "ID  NAME      STATE    CPUS  FAILED\n \
          0  root      running  0-2\n \
          1  latency   running  3\n \
          2  violator  failed   1-2   2\n\
         \n\
         CPU 2 of \"violator\" was stopped: it read guest-physical 0x200000 at RIP 0x1234 \
         (exit reason ept_violation).\n"
    );
    let json = machine.run(&["cell", "list", "--json"]).json();
    let fault = &json["cells"][2]["faults"][0];
    assert_eq!(fault["exit_reason"], "ept_violation");
    assert_eq!(fault["instruction"], "488b07");
    assert_eq!(
        (&fault["cpu"], &fault["address"], &fault["rip"]),
        (&2.into(), &0x20_0000.into(), &0x1234.into())
    );
}

#[test]
fn list_tells_what_watchdogs_have_found() {
    let machine = Machine::enabled();
    let file = "sys/devices/gaol/cells/1/watchdog";
    let told = |line: &str| {
        machine.write(file, line);
        let text = machine.run(&["cell", "list"]).text();
        text.split_once("\n\n")
            .map_or(String::new(), |(_, words)| words.to_owned())
    };
    assert_eq!(told("none\n"), "");
    assert_eq!(told("record 100 0 0 0\n"), "");
    assert_eq!(
        told("record 100 1 0 0\n"),
        "Cell \"latency\" stood still for 100 ms, once.\n"
    );
    assert_eq!(
        told("halt 2000 1 0 0\n"),
        "Cell \"latency\" stood still for 2000 ms, once; its CPUs were stopped for it.\n"
    );
    assert_eq!(
        told("restart 100 6 5 1\n"),
        "Cell \"latency\" stood still for 100 ms, 6 times; it was started again 5 times, and is not any more.\n"
    );
    let json = machine.run(&["cell", "list", "--json"]).json();
    assert_eq!(
        json["cells"][1]["watchdog"],
        json!({
            "policy": "restart", "timeout_ms": 100, "expired": 6, "restarts": 5, "given_up": true
        })
    );
}

#[test]
fn list_tells_how_linux_failed() {
    let machine = Machine::enabled();
    machine.write("sys/devices/gaol/cells/0/cpus_failed_list", "2\n");
    machine.publish_all(
        |system| {
            system.root_failure.count = 1;
            system.root_failure.kind = RootFailureKind::Reset;
            system.root_failure.cpu = 2;
            system.root_failure.address = 0xcf9;
        },
        |_, _| (),
    );
    let text = machine.run(&["cell", "list"]).text();
    assert!(
        text.ends_with("\nLinux failed on CPU 2: it tried to reset the machine at port 0xcf9.\n"),
        "{text}"
    );
}

#[test]
fn stats_of_the_root_tell_its_longest_pauses() {
    let machine = Machine::enabled();
    machine.publish_all(
        |system| {
            system.longest_pauses[0] = 123_456;
            system.longest_pauses[6] = 7;
        },
        |_, _| (),
    );
    assert_eq!(
        machine.run(&["cell", "stats", "root"]).text(),
        "Cell \"root\" (number 0, CPUs 0-2): 0 exits.\n\
         \n\
         LONGEST PAUSE   CYCLES\n\
         create         123,456\n\
         kick                 7\n"
    );
    let json = machine.run(&["cell", "stats", "root", "--json"]).json();
    assert_eq!(
        json["longest_pauses"],
        json!({
            "create": 123_456, "start": 0, "set_loadable": 0, "destroy": 0, "scrub": 0, "look": 0,
            "kick": 7
        })
    );
}

#[test]
fn list_tells_where_the_hypervisor_failed() {
    let machine = Machine::enabled();
    machine.write(
        "images/gaol-vmx.sym",
        "ffffffff80001000 40 gaol_hypervisor::cpu::recovery::one\nffffffff80002000 40 two\n",
    );
    machine.publish(|cpu, page| {
        let fault = &mut page.hypervisor_fault;
        if cpu == 3 {
            fault.count = 1;
            fault.kind = HypervisorFaultKind::Exception;
            fault.cell = 1;
            fault.vector = 14;
            fault.error_code = 2;
            fault.rip = 0xffff_ffff_8000_1010;
            fault.address = 0x10;
            fault.trace[..2].copy_from_slice(&[0xffff_ffff_8000_2004, 0xffff_ffff_8000_3000]);
            fault.trace_length = 2;
        }
        if cpu == 0 {
            fault.count = 2;
            fault.kind = HypervisorFaultKind::Panic;
            fault.line = 12;
            fault.file[..8].copy_from_slice(b"src/a.rs");
        }
    });
    let text = machine.run(&["cell", "list"]).text();
    assert!(
        text.ends_with(
            "\n\nThe hypervisor failed on CPU 0, in cell 0: a panic at src/a.rs:12.\n\
             It has failed there 2 times.\n\
             The hypervisor failed on CPU 3, in cell 1: exception 14 (page fault, error code 0x2) at \
             gaol_hypervisor::cpu::recovery::one+0x10, address 0x10.\n    \
             two+0x4\n    0xffffffff80003000\n\
             This is a fault of Gaol; please report it.\n"
        ),
        "{text}"
    );
    let json = machine.run(&["cell", "list", "--json"]).json();
    let fault = &json["hypervisor_faults"][1];
    assert_eq!((&fault["cpu"], &fault["vector"]), (&3.into(), &14.into()));
    assert_eq!(fault["trace"][0], "two+0x4");
    assert_eq!(json["hypervisor_faults"][0]["line"], 12);
}

#[test]
fn list_says_when_there_is_nothing() {
    let machine = Machine::new();
    assert_eq!(
        machine.run(&["cell", "list"]).text(),
        "Gaol is not enabled: there are no cells.\n"
    );
    let json = machine.run(&["cell", "list", "--json"]).json();
    assert_eq!(json, json!({ "ok": true, "enabled": false, "cells": [] }));
    std::fs::remove_dir_all(machine.path("sys/devices/gaol")).unwrap();
    assert_eq!(
        machine.run(&["cell", "list"]).failure(),
        "gaol: there is no sys/devices/gaol: the module is not loaded\n  Load it: insmod gaol.ko\n"
    );
}

#[test]
fn stats_count_by_reason_and_cpu() {
    let machine = Machine::enabled();
    machine.publish(|cpu, page| {
        page.exits[10] = 1000 * u64::from(cpu + 1);
        page.exits[30] = if cpu == 1 { 20_000 } else { 0 };
        page.exits[COUNTER_KICKS] = 7;
        page.exits[95] = u64::from(cpu == 2);
    });
    assert_eq!(
        machine.run(&["cell", "stats", "root"]).text(),
        "Cell \"root\" (number 0, CPUs 0-2): 26,000 exits.\n\
         \n\
         COUNTER     TOTAL  CPU 0   CPU 1  CPU 2\n\
         exits      26,000  1,000  22,000  3,000\n  \
           port     20,000      0  20,000      0\n  \
           cpuid     6,000  1,000   2,000  3,000\n\
         kicks          21      7       7      7\n\
         exit_0x5f       1      0       0      1\n"
    );
    assert_eq!(
        machine.run(&["cell", "stats", "1"]).text(),
        "Cell \"latency\" (number 1, CPU 3): 4,000 exits.\n\
         \n\
         COUNTER  TOTAL\n\
         exits    4,000\n  \
           cpuid  4,000\n\
         kicks        7\n"
    );
    let json = machine.run(&["cell", "stats", "latency", "--json"]).json();
    assert_eq!(
        (&json["id"], &json["name"], &json["exits_total"]),
        (&1.into(), &"latency".into(), &4000.into())
    );
    assert_eq!(json["exits"], json!({ "cpuid": 4000 }));
    assert_eq!(json["parts"], json!({ "kicks": 7 }));
    assert_eq!(
        json["cpus"]["3"],
        json!({ "exits": { "cpuid": 4000 }, "exits_total": 4000, "parts": { "kicks": 7 } })
    );
}

#[test]
fn stats_of_an_undisturbed_cell_are_short() {
    let machine = Machine::enabled();
    assert_eq!(
        machine.run(&["cell", "stats", "latency"]).text(),
        "Cell \"latency\" (number 1, CPU 3): 0 exits.\n"
    );
    let json = machine.run(&["cell", "stats", "latency", "--json"]).json();
    assert_eq!(
        (&json["exits"], &json["exits_total"]),
        (&json!({}), &0.into())
    );
}

#[test]
fn cells_that_do_not_exist_have_no_stats() {
    let machine = Machine::enabled();
    assert_eq!(
        machine.run(&["cell", "stats", "nobody"]).failure(),
        "gaol: there is no cell \"nobody\"\n  See `gaol cell list`.\n"
    );
    let json = Machine::new().run(&["cell", "stats", "1", "--json"]).json();
    assert_eq!(json["error"]["reason"], "not_enabled");
}

#[test]
fn public_pages_of_another_revision_are_refused() {
    let machine = Machine::enabled();
    std::fs::write(machine.path("sys/devices/gaol/public"), [9; 4096]).unwrap();
    let json = machine.run(&["cell", "stats", "1", "--json"]).json();
    assert_eq!(json["error"]["reason"], "module_mismatch");
    std::fs::write(machine.path("sys/devices/gaol/public"), [0; 10]).unwrap();
    let json = machine.run(&["cell", "stats", "1", "--json"]).json();
    assert_eq!(json["error"]["reason"], "module_mismatch");
}

fn results() -> Results {
    let mut results = Results {
        signature: SIGNATURE,
        ticks: 10_000,
        ticks_done: 10_000,
        period_cycles: 100_000,
        tsc_khz: 100_000,
        min_cycles: 8,
        max_cycles: 25,
        sum_cycles: 100_150,
        class_cycles: 1,
        finished: 1,
        ..Results::new_zeroed()
    };
    results.histogram[8] = 500;
    results.histogram[10] = 9_000;
    results.histogram[11] = 499;
    results.histogram[25] = 1;
    results
}

fn measured(results: &Results) -> Machine {
    let machine = Machine::enabled();
    machine.record.borrow_mut().memory = results
        .as_bytes()
        .chunks(8)
        .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    machine
}

#[test]
fn histogram_shows_numbers_and_bars() {
    let machine = measured(&results());
    let text = machine.run(&["cell", "histogram", "latency"]).text();
    let bars = [
        ("8-9", "500", 3),
        ("10-11", "9,499", 50),
        ("12-13", "0", 0),
        ("14-15", "0", 0),
        ("16-17", "0", 0),
        ("18-19", "0", 0),
        ("20-21", "0", 0),
        ("22-23", "0", 0),
        ("24-25", "1", 1),
    ];
    let mut expected = "\
Cell \"latency\": 10,000 ticks, finished. From the timer's expiry to the handler:

          CYCLES         TIME
period   100,000  1000.000 us
minimum        8     0.080 us
average     10.0     0.100 us
maximum       25     0.250 us

CYCLES  TICKS
"
    .to_owned();
    for (span, ticks, length) in bars {
        let line = format!("{span:>6}  {ticks:>5}  {}", "#".repeat(length));
        expected.push_str(line.trim_end());
        expected.push('\n');
    }
    assert_eq!(text, expected);
    assert_eq!(
        machine.request(),
        Request::Map(0x3100_0000, size_of::<Results>())
    );
}

#[test]
fn histogram_tells_programs_every_class() {
    let json = measured(&results())
        .run(&["cell", "histogram", "1", "--json"])
        .json();
    assert_eq!(
        (&json["ticks"], &json["ticks_done"], &json["finished"]),
        (&10_000.into(), &10_000.into(), &true.into())
    );
    assert_eq!(
        (&json["min_cycles"], &json["max_cycles"]),
        (&8.into(), &25.into())
    );
    assert_eq!(json["avg_cycles"], 10.015);
    let classes = json["histogram"].as_array().unwrap();
    assert_eq!((classes.len(), &classes[10]), (256, &9_000.into()));
}

#[test]
fn histogram_of_a_cell_that_has_just_begun() {
    let begun = Results {
        ticks_done: 0,
        min_cycles: u64::MAX,
        max_cycles: 0,
        sum_cycles: 0,
        finished: 0,
        histogram: [0; 256],
        ..results()
    };
    let machine = measured(&begun);
    assert_eq!(
        machine.run(&["cell", "histogram", "latency"]).text(),
        "Cell \"latency\": 0 of 10,000 ticks so far. From the timer's expiry to the handler:\n\
         \n         \
         CYCLES         TIME\n\
         period  100,000  1000.000 us\n\
         \n\
         Nothing was measured yet.\n"
    );
    let json = machine
        .run(&["cell", "histogram", "latency", "--json"])
        .json();
    assert_eq!(
        (&json["min_cycles"], &json["avg_cycles"], &json["finished"]),
        (&0.into(), &0.0.into(), &false.into())
    );
}

#[test]
fn histogram_names_what_is_beyond_and_what_was_missed() {
    let late = Results {
        overflow: 12,
        missed: 3,
        ..results()
    };
    let text = measured(&late)
        .run(&["cell", "histogram", "latency"])
        .text();
    assert!(text.contains("\n3 ticks were missed: "), "{text}");
    assert!(
        text.ends_with("  256-     12  beyond the histogram\n"),
        "{text}"
    );
}

/// The cell may write what it likes to its memory: no numbers make the command fail.
#[test]
fn histogram_withstands_any_numbers() {
    let mut wild = Results {
        signature: SIGNATURE,
        ..results()
    };
    for field in [
        &mut wild.ticks_done,
        &mut wild.sum_cycles,
        &mut wild.class_cycles,
        &mut wild.overflow,
        &mut wild.period_cycles,
        &mut wild.max_cycles,
    ] {
        *field = u64::MAX;
    }
    wild.histogram = [u64::MAX; 256];
    let machine = measured(&wild);
    machine.run(&["cell", "histogram", "latency"]).text();
    machine
        .run(&["cell", "histogram", "latency", "--json"])
        .json();
    wild.class_cycles = 0;
    wild.tsc_khz = 0;
    measured(&wild)
        .run(&["cell", "histogram", "latency"])
        .text();
}

#[test]
fn histogram_needs_results() {
    let machine = measured(&Results::new_zeroed());
    assert_eq!(
        machine.run(&["cell", "histogram", "latency"]).failure(),
        "gaol: cell \"latency\" has written no results to region \"results\"\n  \
         Is it a latency cell, and does it run? See `gaol cell list` and `gaol console`.\n"
    );
    assert_eq!(
        machine
            .run(&["cell", "histogram", "latency", "--region", "ram"])
            .failure(),
        "gaol: cell \"latency\" has no memory region \"ram\" that it shares with Linux\n  \
         Results need a region with `shared-with-root = true` of at least 4 KiB in the cell's file.\n"
    );
    machine.record.borrow_mut().memory = vec![0; 3];
    let json = machine
        .run(&["cell", "histogram", "latency", "--json"])
        .json();
    assert_eq!(json["error"]["reason"], "no_results");
}

#[test]
fn trace_tells_what_happened_in_its_order() {
    let machine = Machine::enabled();
    machine.publish_all(|system| system.tsc_khz = 1_000_000, |_, _| ());
    assert_eq!(
        machine.run(&["trace"]).text(),
        "Nothing has happened so far.\n"
    );
    let event = |kind, seconds: u64, cell| TraceEvent {
        kind,
        time: seconds * 1_000_000_000,
        cell,
        ..TraceEvent::new_zeroed()
    };
    machine.publish_events(&[
        TraceEvent {
            source: 0x20,
            reason: 6,
            address: 0x130_0000,
            qualification: DEVICE_FAULT_READ.into(),
            ..event(TraceKind::DeviceFault, 5, 1)
        },
        TraceEvent {
            source: 0x1_0018,
            reason: 0x25,
            address: 7,
            ..event(TraceKind::DeviceFault, 6, 9)
        },
        TraceEvent {
            source: 3,
            reason: 48,
            qualification: 0x182,
            address: 0x20_0000,
            place: 0x1234,
            ..event(TraceKind::Violation, 7, 1)
        },
        event(TraceKind::Watchdog, 8, 1),
        TraceEvent {
            source: 2,
            reason: RootFailureKind::Panic.0,
            ..event(TraceKind::RootFailure, 9, 0)
        },
        TraceEvent {
            source: 1,
            ..event(TraceKind::HypervisorFault, 10, 0)
        },
        event(TraceKind(99), 11, 1),
    ]);
    let text = machine.run(&["trace"]).text();
    assert_eq!(
        text,
        "      5.000000  PCI function 0000:00:04.0 of cell \"latency\": a read at 0x1300000 was stopped by its IOMMU (reason 0x6)\n      \
               6.000000  PCI function 0001:00:03.0 of cell 9: an interrupt by entry 7 was stopped by its IOMMU (reason 0x25)\n      \
               7.000000  CPU 3 of cell \"latency\": it wrote guest-physical 0x200000 at RIP 0x1234 (exit reason ept_violation)\n      \
               8.000000  the heartbeat of cell \"latency\" has not changed in time\n      \
               9.000000  Linux failed on CPU 2: its kernel panicked\n     \
               10.000000  the hypervisor failed on CPU 1, in cell \"root\" (`gaol cell list` tells more)\n     \
               11.000000  an event of the unknown kind 99, of cell \"latency\"\n\
         (82 faults of devices were left out, since there were too many at once)\n"
    );
    let json = machine.run(&["trace", "--json"]).json();
    let first = &json["events"][0];
    assert_eq!(
        (&first["kind"], &first["function"], &first["cell_name"]),
        (
            &"device_fault".into(),
            &"0000:00:04.0".into(),
            &"latency".into()
        )
    );
    assert_eq!(
        (&first["address"], &first["read"], &first["number"]),
        (&0x130_0000.into(), &true.into(), &1.into())
    );
    assert_eq!(json["events"][1]["cell_name"], serde_json::Value::Null);
    assert_eq!(json["events"][2]["exit_reason"], "ept_violation");
    assert_eq!(
        (&json["left_out"], &json["overwritten"]),
        (&82.into(), &0.into())
    );
}

/// What `trace -f` writes to; with each piece, something happens.
struct Watcher<'a> {
    machine: &'a Machine,
    pieces: Vec<String>,
}

impl io::Write for Watcher<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.pieces.push(String::from_utf8_lossy(text).into_owned());
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let event = |kind| TraceEvent {
            kind,
            cell: 1,
            ..TraceEvent::new_zeroed()
        };
        let events = [TraceKind::Watchdog, TraceKind(99)].map(event);
        match self.pieces.len() {
            1 => self.machine.publish_events(&events),
            _ => {
                self.machine.write("sys/devices/gaol/enabled", "0\n");
            }
        }
        Ok(())
    }
}

#[test]
fn trace_is_followed_until_gaol_is_disabled() {
    let machine = Machine::enabled();
    machine.publish_events(&[TraceEvent {
        kind: TraceKind::HypervisorFault,
        ..TraceEvent::new_zeroed()
    }]);
    let mut output = Watcher {
        machine: &machine,
        pieces: Vec::new(),
    };
    let arguments = ["gaol", "trace", "-f"].map(Into::into).to_vec();
    let mut errors = Vec::new();
    let status = crate::run(arguments, || machine.host(), &mut output, &mut errors);
    assert_eq!((status, errors), (0, Vec::new()));
    // The second event only: the first one's number was told.
    let [first, second] = output.pieces.as_slice() else {
        panic!("{:?}", output.pieces);
    };
    assert!(first.contains("the hypervisor failed on CPU 0") && first.lines().count() == 1);
    assert!(second.contains("unknown kind 99") && second.lines().count() == 1);
}

#[test]
fn trace_needs_gaol_enabled() {
    let machine = Machine::enabled();
    machine.write("sys/devices/gaol/enabled", "0\n");
    let ran = machine.run(&["trace"]);
    assert_eq!(ran.status, 1);
    assert!(ran.errors.contains("there is no trace"), "{}", ran.errors);
}
