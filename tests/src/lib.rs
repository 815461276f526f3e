//! The test bench: real control planes, real edge sites, real lines to cut.
//!
//! Nothing here imitates anything. [`setup`] gets what the machine lacks (Debian packages, upstream's control
//! plane built from source, images made of static binaries, the product's programs). A [`Cluster`] is etcd,
//! kube-apiserver, kube-controller-manager and kube-scheduler as child processes. A [`Site`] is a machine at the
//! far end of a line: a network and a mount namespace with a containerd of its own. A [`vm::Machine`] is a virtual one,
//! whose power can be cut. All live in a [`Run`], the one directory that knows all that must be taken away again, also when
//! the process that made it was killed.
//!
//! A test is a function of a [`Bench`], started by [`bench::run`]. It waits with [`wait::until`], never by sleeping.

pub mod bench;
pub mod cloud_node;
pub mod cluster;
pub mod http;
pub mod oci;
pub mod pki;
pub mod process;
pub mod product;
pub mod progress;
pub mod random;
pub mod run;
pub mod setup;
pub mod simulator;
pub mod site;
pub mod vm;
pub mod wait;

pub use bench::Bench;
pub use cloud_node::CloudNode;
pub use cluster::{Cluster, ClusterOptions, HeartbeatNodes};
pub use run::Run;
pub use setup::Assets;
pub use site::{Containerd, Flap, Impairment, LineCut, Silent, Site, SiteOptions, Terms, Wire};
