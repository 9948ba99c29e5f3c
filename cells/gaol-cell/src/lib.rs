//! The runtime of bare-metal cells.
