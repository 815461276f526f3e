//! The product as an operator brings it up: cloudcore by `keadm init`, edge nodes by `keadm join`.

mod cloud;
mod edge;

pub use cloud::Cloud;
pub use edge::{Edge, ready};
