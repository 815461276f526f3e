//! KubeEdge's device management interface, v1beta1: types, client and server generated from `protos` and checked in, as with
//! [`cri`](crate::cri).

#[allow(
    clippy::pedantic,
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    elided_lifetimes_in_paths,
    reason = "generated"
)]
pub mod v1beta1 {
    include!("gen/v1beta1.rs");
}
