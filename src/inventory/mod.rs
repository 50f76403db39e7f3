//! Who decides: the inventory.
pub mod memory;
