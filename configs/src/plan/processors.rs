//! Which CPUs a planned cell gets.
//!
//! CPU 0 is Linux'. What matters, in this order: whether the other hyper-threads of the core stay with Linux, whether
//! Linux was told to keep off the CPU, whether it is near to the device, whether system management interrupts were seen.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use gaol_machine::Machine;
use gaol_machine::pci::Address;
use gaol_machine::processors::Processor;
use gaol_machine::summary::ranges;

use super::{Choice, refused};
use crate::create::Refused;

/// What was chosen.
#[derive(Clone, Debug)]
pub(super) struct Chosen {
    /// Linux' numbers, ascending.
    pub(super) chosen: Vec<u32>,
    pub(super) choice: Choice,
}

/// How many CPUs a cell can have.
#[must_use]
pub fn available(machine: &Machine) -> u32 {
    let candidates = machine.processors.online().filter(|cpu| *cpu != 0);
    u32::try_from(candidates.count()).unwrap_or(u32::MAX)
}

/// CPUs that Linux was told to keep its own work off.
fn isolated(machine: &Machine) -> BTreeSet<u32> {
    let mut cpus = BTreeSet::new();
    for parameter in &machine.linux_parameters {
        let Some(("isolcpus" | "nohz_full", list)) = parameter.split_once('=') else {
            continue;
        };
        // Words between the numbers are flags.
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
                let there = machine.processors.all.iter().map(|cpu| cpu.id);
                cpus.extend(there.filter(|cpu| (first..=last).contains(cpu)));
            }
        }
    }
    cpus
}

/// What is known of the machine that bears on the choice.
struct Field<'a> {
    machine: &'a Machine,
    isolated: BTreeSet<u32>,
    /// CPUs of each core that are online, by the lowest one.
    cores: BTreeMap<u32, Vec<u32>>,
}

impl<'a> Field<'a> {
    fn new(machine: &'a Machine) -> Self {
        let mut cores: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for cpu in machine.processors.all.iter().filter(|cpu| cpu.online) {
            let lowest = cpu.siblings.iter().copied().min().unwrap_or(cpu.id);
            cores.entry(lowest.min(cpu.id)).or_default().push(cpu.id);
        }
        Self {
            machine,
            isolated: isolated(machine),
            cores,
        }
    }

    fn cpu(&self, id: u32) -> Option<&'a Processor> {
        self.machine.processors.get(id)
    }

    fn node(&self, id: u32) -> u32 {
        self.cpu(id).map_or(0, |cpu| cpu.node)
    }

    fn has_smis(&self, id: u32) -> bool {
        self.cpu(id)
            .is_some_and(|cpu| cpu.smi_count.is_some_and(|count| count != 0))
    }

    /// CPUs of the same core that are online and not among these.
    fn siblings_left(&self, id: u32, chosen: &[u32]) -> Vec<u32> {
        let siblings = self.cpu(id).map_or(&[][..], |cpu| &cpu.siblings);
        let left = siblings.iter().copied().filter(|it| !chosen.contains(it));
        left.filter(|it| self.cpu(*it).is_some_and(|cpu| cpu.online))
            .collect()
    }

    /// The best `count` CPUs when those of node `home` are the near ones.
    fn take(&self, count: usize, home: u32) -> Vec<u32> {
        let worth = |cpus: &Vec<u32>| {
            let any = |is: &dyn Fn(u32) -> bool| cpus.iter().any(|cpu| is(*cpu));
            (
                any(&|cpu| !self.isolated.contains(&cpu)),
                any(&|cpu| self.node(cpu) != home),
                any(&|cpu| self.has_smis(cpu)),
                Reverse(cpus.first().copied()),
            )
        };
        let mut cores: Vec<Vec<u32>> = self.cores.values().cloned().collect();
        cores.sort_by_key(worth);
        let (with_zero, mut cores): (Vec<_>, Vec<_>) =
            cores.into_iter().partition(|cpus| cpus.contains(&0));
        let mut chosen: Vec<u32> = Vec::new();
        // Whole cores as long as they fit, then parts of others, and those that share CPU 0's core at last.
        cores.retain(|cpus| {
            let fits = chosen.len() + cpus.len() <= count;
            if fits {
                chosen.extend(cpus);
            }
            !fits
        });
        // Of a core, those that Linux keeps off, then the last ones: Linux keeps the first.
        let mut parts: Vec<u32> = Vec::new();
        for cpus in cores.iter().chain(&with_zero) {
            let first = parts.len();
            parts.extend(cpus.iter().filter(|cpu| **cpu != 0));
            parts[first..].sort_by_key(|cpu| (!self.isolated.contains(cpu), Reverse(*cpu)));
        }
        let missing = count.saturating_sub(chosen.len());
        chosen.extend(parts.into_iter().take(missing));
        chosen.sort_unstable();
        chosen
    }

    /// How bad a choice is: each CPU that has the flaw counts.
    fn cost(&self, chosen: &[u32], home: u32) -> [usize; 5] {
        let count = |is: &dyn Fn(u32) -> bool| chosen.iter().filter(|cpu| is(**cpu)).count();
        [
            count(&|cpu| self.siblings_left(cpu, chosen).contains(&0)),
            count(&|cpu| !self.siblings_left(cpu, chosen).is_empty()),
            count(&|cpu| !self.isolated.contains(&cpu)),
            count(&|cpu| self.node(cpu) != home),
            count(&|cpu| self.has_smis(cpu)),
        ]
    }
}

/// Chooses CPUs; `near` is a device and its node.
pub(super) fn choose(
    machine: &Machine,
    count: u32,
    near: Option<(Address, u32)>,
) -> Result<Chosen, Refused> {
    let most = available(machine);
    if count == 0 || count > most {
        let message = match count {
            0 => "a cell without a CPU can't run".to_owned(),
            _ => format!(
                "the machine has {} CPUs that are online, and CPU 0 stays with Linux: a cell can't have {count}",
                most + 1
            ),
        };
        let remedy = match most {
            0 => "Gaol needs a machine with at least two CPUs.".to_owned(),
            1 => "Ask for one CPU: --cpus 1".to_owned(),
            _ => format!("Ask for 1 to {most}: --cpus {most}"),
        };
        return Err(refused(message, remedy));
    }
    let field = Field::new(machine);
    let nodes: BTreeSet<u32> = machine.processors.all.iter().map(|cpu| cpu.node).collect();
    let homes = match near {
        Some((_, node)) => vec![node],
        None => nodes.iter().copied().rev().collect(),
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let candidates = homes.iter().map(|home| (field.take(count, *home), *home));
    let best = candidates.min_by_key(|(chosen, home)| field.cost(chosen, *home));
    let (chosen, _) = best.unwrap_or_default();
    let why = reasons(&field, &chosen, near, nodes.len() > 1);
    Ok(Chosen {
        choice: Choice {
            what: if chosen.len() == 1 { "CPU" } else { "CPUs" },
            value: ranges(chosen.iter().copied()),
            why,
        },
        chosen,
    })
}

/// Sentences on what is good and what is bad about a choice.
fn reasons(
    field: &Field<'_>,
    chosen: &[u32],
    near: Option<(Address, u32)>,
    has_nodes: bool,
) -> String {
    let those = |is: &dyn Fn(u32) -> bool| -> Vec<u32> {
        chosen.iter().copied().filter(|cpu| is(*cpu)).collect()
    };
    let list = |cpus: &[u32]| {
        let noun = if cpus.len() == 1 { "CPU" } else { "CPUs" };
        format!("{noun} {}", ranges(cpus.iter().copied()))
    };
    let mut why = vec!["CPU 0 stays with Linux.".to_owned()];
    siblings(field, chosen, &mut why);
    if !field.isolated.is_empty() {
        let kept = those(&|cpu| field.isolated.contains(&cpu));
        why.push(match kept.len() == chosen.len() {
            true => "Linux was told to keep off (isolcpus=, nohz_full=).".to_owned(),
            false => format!(
                "Linux was told to keep off {}, which are too few or have a hyper-thread in common with others.",
                list(&field.isolated.iter().copied().collect::<Vec<u32>>())
            ),
        });
    }
    if let Some((address, node)) = near.filter(|_| has_nodes) {
        let far = those(&|cpu| field.node(cpu) != node);
        why.push(match far.is_empty() {
            true => format!("Node {node} is near to {address}."),
            false => format!(
                "{address} is near to node {node}, and {} is not: there were no better ones.",
                list(&far)
            ),
        });
    } else if has_nodes {
        let nodes: BTreeSet<u32> = chosen.iter().map(|cpu| field.node(*cpu)).collect();
        why.push(match nodes.len() {
            1 => format!("All is on node {}.", ranges(nodes)),
            _ => format!("No node has so many: nodes {}.", ranges(nodes)),
        });
    }
    let disturbed = those(&|cpu| field.has_smis(cpu));
    let is_known = |cpu: &&u32| field.cpu(**cpu).is_some_and(|it| it.smi_count.is_some());
    if !disturbed.is_empty() {
        why.push(format!(
            "The firmware has interrupted {} (SMI), which Gaol can't hold off.",
            list(&disturbed)
        ));
    } else if chosen.iter().filter(is_known).count() == chosen.len() {
        why.push("No system management interrupts were seen there.".to_owned());
    }
    why.join(" ")
}

fn siblings(field: &Field<'_>, chosen: &[u32], why: &mut Vec<String>) {
    let mut has_siblings = false;
    let mut split = false;
    for cpu in chosen {
        let its = field.cpu(*cpu).map_or(&[][..], |cpu| &cpu.siblings);
        has_siblings |= !its.is_empty();
        let left = field.siblings_left(*cpu, chosen);
        if left.is_empty() {
            continue;
        }
        split = true;
        why.push(format!(
            "CPU {cpu} shares its core with CPU {}, which stays with Linux and can delay it; \
             there was no CPU without one. Ask for whole cores, or turn hyper-threading off.",
            ranges(left)
        ));
    }
    if has_siblings && !split {
        why.push("Whole cores: no hyper-thread of them stays with Linux.".to_owned());
    }
}
