//! The product as an operator brings it up: cloudcore by `keadm init`, edge nodes by `keadm join`.

mod cloud;
mod edge;
mod fault;
mod renewals;
mod scene;
mod wired;
mod workload;

pub use cloud::Cloud;
pub use edge::{ANY_DISK, Edge, first_unready, ready};
pub use fault::{FLAP, Fault};
pub use renewals::{Pace, renewals};
pub use scene::Scene;
pub use wired::{Link, Wired};
pub use workload::{Life, evictable, is_running, pod};
