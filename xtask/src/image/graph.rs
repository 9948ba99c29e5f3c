//! Who calls whom, by disassembly, and what that takes of the stack.
//!
//! A function leads to whatever it calls or jumps to, and to each function whose address it takes. Calls through a constant
//! slot of the image (the linker's table of addresses) are followed, jump tables are read; every other indirect call or
//! jump is kept as such.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use anyhow::{Result, bail, ensure};
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpKind, Register,
};

use super::Image;

/// A call or jump whose target is not in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indirect {
    /// Where it stands.
    pub at: u64,
    /// Bytes of the function's stack that are in use then, with the return address of a call.
    pub depth: u64,
}

/// Where calls and jumps by pointer of one function lead to, as someone has found out who read it.
#[derive(Clone, Copy, Debug)]
pub struct Explained {
    /// Last parts of the function's name.
    pub name: &'static str,
    /// What the names of the functions contain that it may lead to; `None`: to none, for this reason.
    pub to: Result<&'static str, &'static str>,
}

/// What a function leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Name of the function.
    pub name: String,
    /// Functions that it calls or jumps to on its stack: bytes of it that are in use then, the return address with them.
    pub calls: BTreeMap<usize, u64>,
    /// Functions whose address it takes, or that it calls on another stack.
    pub takes: BTreeSet<usize>,
    /// What could not be followed.
    pub indirect: Vec<Indirect>,
    /// Bytes of stack that it uses itself, at the most.
    pub frame: u64,
}

/// The functions, numbered as in the image.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// One for each function.
    pub nodes: Vec<Node>,
}

/// Bytes that a call pushes.
const RETURN_ADDRESS: u64 = 8;

impl Graph {
    /// Disassembles the image.
    ///
    /// # Errors
    /// When bytes are no instruction, or a jump leads out of the text.
    pub fn of(image: &Image) -> Result<Self> {
        let mut nodes = Vec::new();
        for index in 0..image.functions.len() {
            nodes.push(Reader::new(image, index)?.read()?);
        }
        Ok(Self { nodes })
    }

    /// Puts calls in place of what is explained.
    ///
    /// # Errors
    /// When an explanation is about nothing, or leads to nothing.
    pub fn explain(&mut self, explained: &[Explained]) -> Result<()> {
        for Explained { name, to } in explained {
            let Some(function) = self.find(name) else {
                bail!("there is no function {name} to be explained");
            };
            let Ok(part) = to else {
                self.nodes[function].indirect.clear();
                continue;
            };
            let targets: Vec<usize> = (0..self.nodes.len())
                .filter(|target| self.nodes[*target].name.contains(part))
                .collect();
            ensure!(!targets.is_empty(), "no function has {part} in its name");
            let node = &mut self.nodes[function];
            let depth = node.indirect.iter().map(|indirect| indirect.depth).max();
            for target in targets {
                let before = node.calls.entry(target).or_default();
                *before = depth.unwrap_or_default().max(*before);
            }
            node.indirect.clear();
        }
        Ok(())
    }

    /// Number of the function of that name: all of it, or its last parts.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| {
            node.name == name
                || node
                    .name
                    .strip_suffix(name)
                    .is_some_and(|before| before.ends_with("::"))
        })
    }

    /// What the functions `roots` lead to: each with the one that led there first.
    #[must_use]
    pub fn reachable(&self, roots: &[usize]) -> BTreeMap<usize, Option<usize>> {
        let mut found: BTreeMap<usize, Option<usize>> =
            roots.iter().map(|root| (*root, None)).collect();
        let mut queue: VecDeque<usize> = roots.iter().copied().collect();
        while let Some(function) = queue.pop_front() {
            let node = &self.nodes[function];
            for next in node.calls.keys().chain(&node.takes) {
                if !found.contains_key(next) {
                    found.insert(*next, Some(function));
                    queue.push_back(*next);
                }
            }
        }
        found
    }

    /// The shortest way from `roots` to `target`, as names.
    #[must_use]
    pub fn chain(&self, found: &BTreeMap<usize, Option<usize>>, target: usize) -> Vec<&str> {
        let mut chain = vec![self.nodes[target].name.as_str()];
        let mut at = target;
        while let Some(Some(before)) = found.get(&at) {
            chain.push(&self.nodes[*before].name);
            at = *before;
        }
        chain.reverse();
        chain
    }

    /// Bytes of stack that `root` and what it calls need at the most, and the way that needs them.
    ///
    /// `bounded` are the last parts of the names of functions that call themselves, and how many of each there can be on
    /// the stack at a time.
    ///
    /// # Errors
    /// When another function comes back to itself: then there is no bound.
    pub fn deepest(&self, root: usize, bounded: &[(&str, u64)]) -> Result<(u64, Vec<&str>)> {
        let mut known = BTreeMap::new();
        self.depth(root, bounded, &mut Vec::new(), &mut known)?;
        let mut chain = vec![self.nodes[root].name.as_str()];
        let mut at = root;
        while let Some((_, Some(next))) = known.get(&at) {
            chain.push(&self.nodes[*next].name);
            at = *next;
        }
        Ok((known.get(&root).map_or(0, |(depth, _)| *depth), chain))
    }

    fn depth(
        &self,
        function: usize,
        bounded: &[(&str, u64)],
        path: &mut Vec<usize>,
        known: &mut BTreeMap<usize, (u64, Option<usize>)>,
    ) -> Result<u64> {
        if let Some((depth, _)) = known.get(&function) {
            return Ok(*depth);
        }
        if let Some(start) = path.iter().position(|before| *before == function) {
            let names: Vec<&str> = path[start..]
                .iter()
                .chain([&function])
                .map(|at| self.nodes[*at].name.as_str())
                .collect();
            bail!("recursion: {}", names.join(" → "));
        }
        path.push(function);
        let node = &self.nodes[function];
        let mut deepest = (node.frame, None);
        let most = bounded.iter().find(|(name, _)| node.name.ends_with(name));
        let mut repeated = 0;
        for (next, before) in &node.calls {
            if *next == function
                && let Some((_, most)) = most
            {
                repeated = before * (most - 1);
                continue;
            }
            let depth = before + self.depth(*next, bounded, path, known)?;
            if depth > deepest.0 {
                deepest = (depth, Some(*next));
            }
        }
        deepest.0 += repeated;
        path.pop();
        known.insert(function, deepest);
        Ok(deepest.0)
    }
}

/// Reads one function.
struct Reader<'a> {
    image: &'a Image,
    index: usize,
    instructions: Vec<Instruction>,
    node: Node,
    /// Bytes on the stack where a branch leads to.
    expected: BTreeMap<u64, u64>,
    /// The same for jump tables, whose targets may be anywhere in the function.
    at_tables: u64,
    /// Another stack was loaded: what is called from here on takes none of this one.
    is_elsewhere: bool,
}

impl<'a> Reader<'a> {
    fn new(image: &'a Image, index: usize) -> Result<Self> {
        let function = &image.functions[index];
        let Some(bytes) = image.bytes(&function.range) else {
            bail!("{} is not in the image", function.name);
        };
        let decoder = Decoder::with_ip(64, bytes, function.range.start, DecoderOptions::NONE);
        Ok(Self {
            image,
            index,
            instructions: decoder.into_iter().collect(),
            node: Node {
                name: function.name.clone(),
                ..Node::default()
            },
            expected: BTreeMap::new(),
            at_tables: 0,
            is_elsewhere: false,
        })
    }

    fn read(mut self) -> Result<Node> {
        let mut depth = 0u64;
        let mut is_new_start = false;
        for position in 0..self.instructions.len() {
            let instruction = self.instructions[position];
            if instruction.is_invalid() {
                // Padding of zeroes or text of the linker script's header behind the last instruction.
                ensure!(
                    is_new_start,
                    "{}: no instruction at {:#x}",
                    self.node.name,
                    instruction.ip()
                );
                break;
            }
            if is_new_start {
                depth = self.expected.get(&instruction.ip()).copied().unwrap_or(
                    if self.at_tables > 0 {
                        self.at_tables
                    } else {
                        self.node.frame
                    },
                );
            }
            is_new_start = self.follow(position, depth)?;
            let Some(behind) = after(&instruction, depth) else {
                bail!(
                    "{}: the stack behind {:#x} has no bound",
                    self.node.name,
                    instruction.ip()
                );
            };
            depth = behind;
            self.is_elsewhere |= loads_stack(&instruction);
            self.node.frame = self.node.frame.max(depth);
            self.addresses(&instruction);
        }
        Ok(self.node)
    }

    /// Notes where the instruction leads. `true`: not to the next one.
    fn follow(&mut self, position: usize, depth: u64) -> Result<bool> {
        let instruction = self.instructions[position];
        match instruction.flow_control() {
            // VMLAUNCH and the like count as calls, too.
            FlowControl::Call if instruction.mnemonic() == Mnemonic::Call => {
                self.target(&instruction, depth + RETURN_ADDRESS)?;
                Ok(false)
            }
            FlowControl::ConditionalBranch => {
                self.target(&instruction, depth)?;
                Ok(false)
            }
            FlowControl::UnconditionalBranch => {
                self.target(&instruction, depth)?;
                Ok(true)
            }
            FlowControl::IndirectCall => {
                self.indirect(position, depth + RETURN_ADDRESS);
                Ok(false)
            }
            FlowControl::IndirectBranch => {
                if !self.jump_table(position, depth) {
                    self.indirect(position, depth);
                }
                Ok(true)
            }
            FlowControl::Return | FlowControl::Exception => Ok(true),
            _ => Ok(false),
        }
    }

    fn target(&mut self, instruction: &Instruction, depth: u64) -> Result<()> {
        let target = instruction.near_branch_target();
        let own = &self.image.functions[self.index].range;
        if own.contains(&target) && (target != own.start || !is_call(instruction)) {
            let expected = self.expected.entry(target).or_default();
            *expected = depth.max(*expected);
            return Ok(());
        }
        let Some(function) = self.image.function_at(target) else {
            bail!(
                "{}: {:#x} leads to {target:#x}, where no function is",
                self.node.name,
                instruction.ip()
            );
        };
        self.call(function, depth);
        Ok(())
    }

    fn call(&mut self, function: usize, depth: u64) {
        if self.is_elsewhere {
            self.node.takes.insert(function);
            return;
        }
        let before = self.node.calls.entry(function).or_default();
        *before = depth.max(*before);
    }

    fn indirect(&mut self, position: usize, depth: u64) {
        let instruction = self.instructions[position];
        let slot = match instruction.op0_kind() {
            OpKind::Memory => Some(instruction),
            // The nearest load of the register before.
            _ => self
                .last_write(position, instruction.op0_register())
                .map(|index| self.instructions[index]),
        };
        let function = slot
            .and_then(|load| fixed_address(&load))
            .and_then(|address| self.image.word(address))
            .and_then(|address| self.image.function_from(address));
        match function {
            Some(function) => self.call(function, depth),
            None => self.node.indirect.push(Indirect {
                at: instruction.ip(),
                depth,
            }),
        }
    }

    /// Index of the last instruction before `position`, in the order of the text, that writes the register.
    fn last_write(&self, position: usize, register: Register) -> Option<usize> {
        let mut factory = InstructionInfoFactory::new();
        (0..position).rev().find(|index| {
            let instruction = &self.instructions[*index];
            let writes = factory
                .info(instruction)
                .used_registers()
                .iter()
                .any(|used| {
                    used.register().full_register() == register
                        && matches!(
                            used.access(),
                            OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite
                        )
                });
            writes && instruction.mnemonic() != Mnemonic::Pop
        })
    }

    /// A jump by a table of distances, as the compiler makes them: LEA of the table, MOVSXD of the entry, ADD, JMP.
    fn jump_table(&mut self, position: usize, depth: u64) -> bool {
        let jump = self.instructions[position];
        if jump.op0_kind() != OpKind::Register {
            return false;
        }
        let Some(added) = self.last_write(position, jump.op0_register()) else {
            return false;
        };
        let add = self.instructions[added];
        if add.mnemonic() != Mnemonic::Add || add.op1_kind() != OpKind::Register {
            return false;
        }
        let base = add.op1_register();
        let Some(table) = self
            .last_write(added, base)
            .map(|index| self.instructions[index])
            .filter(|lea| lea.mnemonic() == Mnemonic::Lea)
            .and_then(|lea| fixed_address(&lea))
        else {
            return false;
        };
        let own = self.image.functions[self.index].range.clone();
        let mut entry = table;
        while let Some(target) = self
            .image
            .offset(entry)
            .map(|offset| table.wrapping_add_signed(offset.into()))
            .filter(|target| own.contains(target))
        {
            let expected = self.expected.entry(target).or_default();
            *expected = depth.max(*expected);
            entry += 4;
        }
        self.at_tables = self.at_tables.max(depth);
        entry > table
    }

    /// Notes the functions whose address the instruction takes: in an immediate, by LEA, or out of a slot.
    fn addresses(&mut self, instruction: &Instruction) {
        let mut found = Vec::new();
        if let Some(address) = fixed_address(instruction) {
            found.push(address);
            if instruction.mnemonic() != Mnemonic::Lea {
                found.extend(self.image.word(address));
            }
        }
        let branches = [
            OpKind::NearBranch16,
            OpKind::NearBranch32,
            OpKind::NearBranch64,
        ];
        for operand in 0..instruction.op_count() {
            let kind = instruction.op_kind(operand);
            if !branches.contains(&kind)
                && let Ok(value) = instruction.try_immediate(operand)
            {
                found.push(value);
            }
        }
        for address in found {
            if let Some(function) = self.image.function_from(address)
                && function != self.index
            {
                self.node.takes.insert(function);
            }
        }
    }
}

/// The address of the memory operand, where no register is part of it.
fn fixed_address(instruction: &Instruction) -> Option<u64> {
    let has_memory =
        (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    let registers = (instruction.memory_base(), instruction.memory_index());
    match registers {
        _ if !has_memory => None,
        (Register::RIP, Register::None) => Some(instruction.ip_rel_memory_address()),
        (Register::None, Register::None) => Some(instruction.memory_displacement64()),
        _ => None,
    }
}

fn is_call(instruction: &Instruction) -> bool {
    instruction.flow_control() == FlowControl::Call
}

/// Is the stack another one behind the instruction?
fn loads_stack(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op_count() > 0
        && instruction.op0_register() == Register::RSP
}

/// Bytes on the stack behind the instruction, relative to the function's start; `None`: nobody can tell.
fn after(instruction: &Instruction, depth: u64) -> Option<u64> {
    let is_stack = instruction.op_count() > 0 && instruction.op0_register() == Register::RSP;
    let immediate = || instruction.try_immediate(1).ok();
    Some(match instruction.mnemonic() {
        // Another stack.
        Mnemonic::Mov | Mnemonic::Pop if is_stack => 0,
        Mnemonic::And if is_stack => depth + 16,
        Mnemonic::Sub if is_stack => depth.checked_add(immediate()?)?,
        Mnemonic::Add if is_stack => depth.saturating_add_signed(-(immediate()? as i64)),
        // A new stack pointer, or the end of a loop that touches each page of a large frame.
        Mnemonic::Lea if instruction.memory_base() == Register::RSP => {
            let displacement = instruction.memory_displacement64() as i64;
            if is_stack || displacement < 0 {
                depth.saturating_add_signed(-displacement)
            } else {
                depth
            }
        }
        Mnemonic::Call | Mnemonic::Ret | Mnemonic::Iretq | Mnemonic::Retf => depth,
        _ => depth.saturating_add_signed(-i64::from(instruction.stack_pointer_increment())),
    })
}
