//! The cloud side: edge nodes connect to [`cloudhub`]; [`edgecontroller`] knows what each should hold and writes what
//! each reports into the Kubernetes API; [`devicecontroller`] has the API server serve every version of the device kinds.
//!
//! Nothing is kept on disk, and nothing in etcd but the CA and the token signing keys ([`secrets`]): a restart, or a move
//! of a node to another replica, costs one exchange of digests.

mod apiserver;
pub mod app;
pub mod args;
pub mod cloudhub;
pub mod cloudstream;
pub mod config;
pub mod devicecontroller;
pub mod edgecontroller;
pub mod metrics;
pub mod secrets;
