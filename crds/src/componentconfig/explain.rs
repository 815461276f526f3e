//! The documentation of a configuration's keys, read from its types.
