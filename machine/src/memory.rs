//! Memory: the RAM that Linux knows, and which NUMA node it belongs to.

use std::collections::BTreeMap;

use crate::problem::{Problem, optional};
use crate::processors::node_ids;
use crate::resources::Resource;
use crate::source::Source;
use crate::span::{Span, merged, number_list};

const NODES: &str = "/sys/devices/system/node";
const BLOCK_SIZE: &str = "/sys/devices/system/memory/block_size_bytes";

/// RAM that Linux uses, all of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ram {
    /// Physical addresses.
    pub span: Span,
    /// NUMA node; 0 on machines without, or when Linux does not tell.
    pub node: u32,
}

/// A NUMA node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Linux' number.
    pub id: u32,
    /// Its processors that are online, by Linux' numbers.
    pub cpus: Vec<u32>,
    /// Its RAM, in bytes.
    pub memory: u64,
}

/// RAM by address, and the nodes. Without nodes of Linux', all is of node 0.
///
/// # Errors
/// When a file can't be read or makes no sense.
pub(crate) fn read(source: &Source, iomem: &[Resource]) -> Result<(Vec<Ram>, Vec<Node>), Problem> {
    let ram = iomem.iter().flat_map(Resource::walk);
    let ram = ram.filter(|resource| resource.name.starts_with("System RAM"));
    let spans = merged(ram.map(|resource| resource.span).collect());
    let ids = node_ids(source)?;
    let blocks = match ids.len() {
        0 | 1 => BTreeMap::new(),
        _ => blocks_of_nodes(source, &ids)?,
    };
    let default = ids.first().copied().unwrap_or(0);
    let mut ram = Vec::new();
    for span in spans {
        ram.extend(split(span, &blocks, default));
    }
    let mut nodes = Vec::new();
    for id in ids {
        let path = format!("{NODES}/node{id}/cpulist");
        let cpus = number_list(&path, &source.read_text(&path)?)?;
        let its = ram.iter().filter(|ram| ram.node == id);
        nodes.push(Node {
            id,
            cpus: cpus.into_iter().collect(),
            memory: its.map(|ram| ram.span.size()).sum(),
        });
    }
    Ok((ram, nodes))
}

/// Where the memory blocks of each node are; empty when Linux has no memory blocks.
fn blocks_of_nodes(
    source: &Source,
    ids: &std::collections::BTreeSet<u32>,
) -> Result<BTreeMap<u32, Vec<Span>>, Problem> {
    let Some(text) = optional(source.read_text(BLOCK_SIZE))? else {
        return Ok(BTreeMap::new());
    };
    let size = u64::from_str_radix(text.trim(), 16);
    let size = size.ok().filter(|size| size.is_power_of_two());
    let size = size.ok_or_else(|| {
        let what = format!("{:?} is no size of blocks", text.trim());
        Problem::garbage(BLOCK_SIZE, what)
    })?;
    let mut blocks = BTreeMap::new();
    for &id in ids {
        let path = format!("{NODES}/node{id}");
        let mut spans = Vec::new();
        for name in source.list(&path)? {
            let Some(Ok(block)) = name.strip_prefix("memory").map(str::parse::<u64>) else {
                continue;
            };
            let span = block
                .checked_mul(size)
                .and_then(|start| Span::sized(start, size));
            spans.push(span.ok_or_else(|| {
                Problem::garbage(&path, format!("{name} lies beyond all addresses"))
            })?);
        }
        blocks.insert(id, merged(spans));
    }
    Ok(blocks)
}

/// The parts of a span by node, in the order of addresses. What is in no block belongs to the node `default`.
fn split(span: Span, blocks: &BTreeMap<u32, Vec<Span>>, default: u32) -> Vec<Ram> {
    let mut parts: Vec<Ram> = Vec::new();
    for (&node, spans) in blocks {
        let inside = spans.iter().filter_map(|block| block.intersection(&span));
        parts.extend(inside.map(|span| Ram { span, node }));
    }
    parts.sort_unstable();
    let mut all = Vec::new();
    // None when everything up to the last address is given.
    let mut next = Some(span.start());
    for part in parts {
        let Some(start) = next else { break };
        // A block of two nodes is told of both; the lower address was given to the first.
        let Some(rest) = Span::inclusive(start.max(part.span.start()), part.span.last()) else {
            continue;
        };
        if let Some(before) = rest.start().checked_sub(1)
            && let Some(gap) = Span::inclusive(start, before)
        {
            all.push(Ram {
                span: gap,
                node: default,
            });
        }
        all.push(Ram {
            span: rest,
            node: part.node,
        });
        next = rest.last().checked_add(1);
    }
    if let Some(rest) = next.and_then(|next| Span::inclusive(next, span.last())) {
        all.push(Ram {
            span: rest,
            node: default,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_between_nodes() {
        let span = |first, last| Span::inclusive(first, last).unwrap();
        let blocks = BTreeMap::from([
            (0, vec![span(0, 99)]),
            (1, vec![span(90, 199), span(300, 399)]),
        ]);
        let ram = |first, last, node| Ram {
            span: span(first, last),
            node,
        };
        assert_eq!(
            split(span(10, 450), &blocks, 7),
            [
                ram(10, 99, 0),
                ram(100, 199, 1),
                ram(200, 299, 7),
                ram(300, 399, 1),
                ram(400, 450, 7)
            ]
        );
        assert_eq!(
            split(span(500, u64::MAX), &blocks, 0),
            [ram(500, u64::MAX, 0)]
        );
        assert_eq!(split(span(0, 50), &blocks, 7), [ram(0, 50, 0)]);
    }
}
