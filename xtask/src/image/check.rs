//! What is demanded of the image: no panic can be reached, no indirect call is unexplained, the stack suffices.

use anyhow::{Context, Result, ensure};

use super::Image;
use super::graph::{Explained, Graph};

/// Where the processor enters the image once guests run.
const EXIT_ROOTS: &[&str] = &[
    "entry::vm_exit",
    "tables::stubs",
    "entry::nmi",
    "tables::machine_check",
    "apic::drop_interrupt",
    "events::restarted",
];

/// Where it enters it at the launch.
const LAUNCH_ROOTS: &[&str] = &["gaol_entry", "launch::second_half"];

/// Calls and jumps through registers or memory that remain.
const EXPLAINED: &[Explained] = &[
    Explained {
        name: "entry::switch_stack",
        to: Err("what it is given are `second_half` and `restarted`, both roots"),
    },
    Explained {
        name: "leave::leave",
        to: Err("the stub page of the module, outside of the image"),
    },
    Explained {
        name: "launch::back_natively",
        to: Err("the stub page of the module, outside of the image"),
    },
    Explained {
        name: "mmio::carry_out",
        to: Ok("as gaol_hypervisor::guest::mmio::Registers>::"),
    },
    Explained {
        name: "message::Wanted::checked",
        to: Ok("gaol_hypervisor::guest::pci::write::{{closure}}"),
    },
];

/// Functions that call themselves, and how often at the most: once for each level of a page table.
const BOUNDED: &[(&str, u64)] = &[
    ("Update<F,T>::count_frames", LEVELS),
    ("Update<F,T>::count_fresh", LEVELS),
    ("Update<F,T>::apply", LEVELS),
    ("update::retire_tables", LEVELS),
];
const LEVELS: u64 = 5;

/// Bytes of a CPU's main stack.
pub const STACK: u64 = 5 * 4096;
/// What the exit path may take of it: the rest is a margin for an exception's frame and its report.
pub const STACK_LIMIT: u64 = STACK * 3 / 4;
/// Bytes of the stacks of NMIs, double faults and machine checks.
pub const SMALL_STACK_LIMIT: u64 = 4096 * 3 / 4;

/// Fewer functions than this behind a VM exit: then the graph was not read.
const LEAST_FUNCTIONS: usize = 40;

/// Is it a function that ends in a panic?
#[must_use]
pub fn is_panic(name: &str) -> bool {
    [
        "core::panicking::",
        "core::panic::",
        "panic_fmt",
        "panic_bounds_check",
        "unwrap_failed",
        "expect_failed",
        "slice_index_fail",
        "slice_start_index",
        "slice_end_index",
        "slice_error_fail",
        "slice_index_order_fail",
        "len_mismatch_fail",
        "rust_begin_unwind",
        "handle_alloc_error",
        "panic_already",
    ]
    .iter()
    .any(|part| name.contains(part))
}

/// What was found in an image that is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Functions that a VM exit or an exception can lead to.
    pub exit_functions: usize,
    /// Bytes of stack that a VM exit needs at the most, and the calls that need them.
    pub exit_stack: (u64, Vec<String>),
    /// The same for an exception.
    pub exception_stack: u64,
    /// The same for the launch.
    pub launch_stack: u64,
}

fn numbers(graph: &Graph, names: &[&str]) -> Result<Vec<usize>> {
    names
        .iter()
        .map(|name| {
            graph
                .find(name)
                .with_context(|| format!("there is no function {name} in the image"))
        })
        .collect()
}

/// Fails with the shortest way to a panic function.
///
/// # Errors
/// When one can be reached from `roots`.
pub fn no_panic(graph: &Graph, roots: &[usize], what: &str) -> Result<usize> {
    let found = graph.reachable(roots);
    let panics = found.keys().filter(|at| is_panic(&graph.nodes[**at].name));
    let shortest = panics
        .map(|at| graph.chain(&found, *at))
        .min_by_key(Vec::len);
    if let Some(chain) = shortest {
        anyhow::bail!("{what} can panic: {}", chain.join(" → "));
    }
    Ok(found.len())
}

/// Fails when a call or jump by a pointer is reachable that nobody has explained.
///
/// # Errors
/// Which one, and the way to it.
pub fn no_unexplained(graph: &Graph, roots: &[usize], what: &str) -> Result<()> {
    let found = graph.reachable(roots);
    for at in found.keys() {
        if let Some(indirect) = graph.nodes[*at].indirect.first() {
            anyhow::bail!(
                "{what} leads to a call or jump by pointer that is not explained, at {:#x}: {}",
                indirect.at,
                graph.chain(&found, *at).join(" → ")
            );
        }
    }
    Ok(())
}

/// Checks the linker's file.
///
/// # Errors
/// What is wrong with it.
pub fn check(elf: &[u8]) -> Result<Report> {
    let image = Image::read(elf)?;
    let mut graph = Graph::of(&image)?;
    graph.explain(EXPLAINED)?;
    let exits = numbers(&graph, EXIT_ROOTS)?;
    let launch = numbers(&graph, LAUNCH_ROOTS)?;
    let exit_functions = no_panic(&graph, &exits, "the exit path")?;
    ensure!(
        exit_functions >= LEAST_FUNCTIONS,
        "only {exit_functions} functions were found behind a VM exit: the graph is not whole"
    );
    no_panic(&graph, &launch, "the launch")?;
    no_unexplained(&graph, &exits, "the exit path")?;
    no_unexplained(&graph, &launch, "the launch")?;
    let depth = |name: &str, limit: u64| -> Result<(u64, Vec<String>)> {
        let (depth, chain) = graph.deepest(numbers(&graph, &[name])?[0], BOUNDED)?;
        ensure!(
            depth <= limit,
            "{name} needs {depth} bytes of stack, and {limit} are allowed: {}",
            chain.join(" → ")
        );
        Ok((depth, chain.into_iter().map(str::to_owned).collect()))
    };
    for name in ["entry::nmi", "tables::machine_check"] {
        depth(name, SMALL_STACK_LIMIT)?;
    }
    // Whatever begins on an empty stack, but for the frame of an exit.
    for name in ["recovery::resume", "events::restarted"] {
        depth(name, STACK_LIMIT)?;
    }
    // SVM tells of it by an ordinary exit, in which the compiler may take it in.
    if graph.find("exit::entry_failed").is_some() {
        depth("exit::entry_failed", STACK_LIMIT)?;
    }
    Ok(Report {
        exit_functions,
        exit_stack: depth("entry::vm_exit", STACK_LIMIT)?,
        exception_stack: depth("tables::stubs", SMALL_STACK_LIMIT)?.0,
        launch_stack: depth("gaol_entry", STACK)?
            .0
            .max(depth("launch::second_half", STACK)?.0),
    })
}
