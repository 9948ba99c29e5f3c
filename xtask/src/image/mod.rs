//! The hypervisor's image taken to pieces: what its functions are, which calls which, and how much stack each takes.
//!
//! Invariant: nothing is assumed away. What can't be followed is told, and whoever asks has to explain it.

pub mod check;
pub mod graph;
pub mod symbols;
#[cfg(test)]
mod tests;

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSegment, ObjectSymbol, SymbolKind};

/// A function of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name, demangled.
    pub name: String,
    /// Where it is.
    pub range: Range<u64>,
}

/// An image with its symbols.
#[derive(Debug)]
pub struct Image {
    /// Its functions, by address, without overlap.
    pub functions: Vec<Symbol>,
    /// What is loaded: address and bytes.
    segments: Vec<(u64, Vec<u8>)>,
}

impl Image {
    /// Reads the linker's ELF file.
    ///
    /// # Errors
    /// When it is no such file, or has no symbols.
    pub fn read(elf: &[u8]) -> Result<Self> {
        let file = ElfFile64::<LittleEndian>::parse(elf).context("it is no ELF file")?;
        let mut segments = Vec::new();
        for segment in file.segments() {
            segments.push((segment.address(), segment.data()?.to_vec()));
        }
        let mut symbols: Vec<Symbol> = Vec::new();
        for symbol in file.symbols() {
            // Labels of assembly that stands alone are functions of unknown size.
            let is_label = symbol.kind() == SymbolKind::Unknown && symbol.section_index().is_some();
            if (symbol.kind() == SymbolKind::Text || is_label) && !symbol.is_undefined() {
                let name = symbol.name().unwrap_or("?");
                symbols.push(Symbol {
                    name: format!("{:#}", rustc_demangle::demangle(name)),
                    range: symbol.address()..symbol.address() + symbol.size(),
                });
            }
        }
        let text = file
            .section_by_name(".text")
            .context("it has no section .text")?;
        let text = object::ObjectSection::address(&text)
            ..object::ObjectSection::address(&text) + object::ObjectSection::size(&text);
        Self::new(segments, symbols, &text)
    }

    /// An image of these parts. Symbols that say no size reach as far as the next one; those inside others are labels.
    ///
    /// # Errors
    /// When there is no function.
    pub fn new(
        segments: Vec<(u64, Vec<u8>)>,
        mut symbols: Vec<Symbol>,
        text: &Range<u64>,
    ) -> Result<Self> {
        symbols.retain(|symbol| {
            text.contains(&symbol.range.start) && !symbol.name.starts_with("__text")
        });
        // Of two at one place the larger one.
        symbols.sort_by_key(|symbol| (symbol.range.start, u64::MAX - symbol.range.end));
        let starts: Vec<u64> = symbols.iter().map(|symbol| symbol.range.start).collect();
        let mut functions: Vec<Symbol> = Vec::new();
        for mut symbol in symbols {
            if functions
                .last()
                .is_some_and(|last| symbol.range.start < last.range.end)
            {
                continue;
            }
            if symbol.range.is_empty() {
                let start = symbol.range.start;
                let next = starts.iter().find(|next| **next > start);
                symbol.range.end = next.copied().unwrap_or(text.end);
            }
            functions.push(symbol);
        }
        ensure!(!functions.is_empty(), "it has no symbols");
        Ok(Self {
            functions,
            segments,
        })
    }

    /// Index of the function that has this address.
    #[must_use]
    pub fn function_at(&self, address: u64) -> Option<usize> {
        let index = self
            .functions
            .partition_point(|function| function.range.start <= address)
            .checked_sub(1)?;
        self.functions[index]
            .range
            .contains(&address)
            .then_some(index)
    }

    /// Index of the function that begins at this address.
    #[must_use]
    pub fn function_from(&self, address: u64) -> Option<usize> {
        self.function_at(address)
            .filter(|index| self.functions[*index].range.start == address)
    }

    /// Loaded bytes.
    #[must_use]
    pub fn bytes(&self, range: &Range<u64>) -> Option<&[u8]> {
        self.segments.iter().find_map(|(start, bytes)| {
            let from = usize::try_from(range.start.checked_sub(*start)?).ok()?;
            let to = usize::try_from(range.end.checked_sub(*start)?).ok()?;
            bytes.get(from..to)
        })
    }

    /// The 8 bytes at an address.
    #[must_use]
    pub fn word(&self, address: u64) -> Option<u64> {
        let bytes = self.bytes(&(address..address.checked_add(8)?))?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// The signed 4 bytes at an address.
    #[must_use]
    pub fn offset(&self, address: u64) -> Option<i32> {
        let bytes = self.bytes(&(address..address.checked_add(4)?))?;
        Some(i32::from_le_bytes(bytes.try_into().ok()?))
    }
}
