//! The user API through attested TLS: whatever comes through the connection is the Coordinator's.

use continuity::Voucher;
use tonic::{Code, transport::Channel};
use wire::{
    history::{HeadRequest, HeadResponse, history_client::HistoryClient},
    proposals::{VouchRequest, proposals_client::ProposalsClient},
    replica::cluster_client::ClusterClient,
    user::{
        Acceptance, GetManifestsRequest, RecoverRequest, RecoverResponse, SetManifestRequest,
        SetManifestResponse, user_api_client::UserApiClient,
    },
};

use crate::{
    attested::Attested,
    error::{CallError, answered},
    request::{NewManifest, OlderHead, SeedShareForm, ShownHistory, latest_of},
};

/// Largest answer: a long history with its policies, in bytes.
pub(crate) const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The stream that manifests are set in.
const CONTROL: &str = "control";

impl Attested {
    /// Manifests and recovery.
    pub fn user(&self) -> UserApiClient<Channel> {
        UserApiClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// Changes that several owners sign.
    pub fn proposals(&self) -> ProposalsClient<Channel> {
        ProposalsClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The event log.
    pub fn log(&self) -> HistoryClient<Channel> {
        HistoryClient::new(self.channel()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// How the replica stands.
    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel())
    }

    /// The signed head of the control stream, with a proof that it extends `extends` events. `None`: it has fewer.
    pub async fn head(&self, extends: u64) -> Result<Option<HeadResponse>, CallError> {
        match self.log().head(HeadRequest { stream: CONTROL.to_owned(), extends }).await {
            Ok(answer) => Ok(Some(answer.into_inner())),
            Err(status) if status.code() == Code::OutOfRange => Ok(None),
            Err(status) => Err(answered(status)),
        }
    }

    /// The history; it is an error where no manifest was ever set.
    pub async fn history(&self) -> Result<ShownHistory, CallError> {
        let answer = self.user().get_manifests(GetManifestsRequest {}).await.map_err(answered)?.into_inner();
        let latest = answer.latest_transition.unwrap_or_default().transition_hash;
        if latest_of(&answer.manifests).as_bytes().as_slice() != latest {
            let text = "the Coordinator's history does not add up to its latest transition";
            return Err(CallError::Contradiction(text.to_owned()));
        }
        let voucher = |voucher: wire::user::Voucher| Voucher {
            public_key: voucher.public_key,
            signature: voucher.signature,
        };
        Ok(ShownHistory {
            claims: self.claims().clone(),
            manifests: answer.manifests,
            policies: answer.policies,
            root_ca: answer.root_ca,
            mesh_ca: answer.mesh_ca,
            vouchers: answer.vouchers.into_iter().map(voucher).collect(),
            older_heads: answer.older_heads.into_iter().map(older_head).collect::<Result<_, _>>()?,
        })
    }

    pub(crate) async fn set(&self, new: NewManifest<'_>) -> Result<SetManifestResponse, CallError> {
        let NewManifest { manifest, policies, signatures, previous } = new;
        let mut signatures = signatures.into_iter();
        let request = SetManifestRequest {
            manifest: manifest.bytes().to_vec(),
            policies,
            previous_transition_hash: previous.map(|hash| hash.as_bytes().to_vec()).unwrap_or_default(),
            signature: signatures.next().unwrap_or_default(),
            more_signatures: signatures.collect(),
        };
        Ok(self.user().set_manifest(request).await.map_err(answered)?.into_inner())
    }

    pub(crate) async fn recover(&self, form: SeedShareForm<'_>) -> Result<RecoverResponse, CallError> {
        let SeedShareForm { seed, salt, checkpoint, force, accept_older_head, owner_key: _ } = form;
        let accept_older_head =
            accept_older_head.map(|(signature, public_key)| Acceptance { public_key, signature });
        let request = RecoverRequest { seed: seed.to_vec(), salt, force, checkpoint, accept_older_head };
        Ok(self.user().recover(request).await.map_err(answered)?.into_inner())
    }

    pub(crate) async fn vouch(&self, voucher: Voucher) -> Result<(), CallError> {
        let Voucher { public_key, signature } = voucher;
        self.proposals().vouch(VouchRequest { public_key, signature }).await.map(drop).map_err(answered)
    }
}

fn older_head(shown: wire::user::OlderHead) -> Result<OlderHead, CallError> {
    let root = |root: Vec<u8>| {
        root.try_into().map_err(|_| CallError::Malformed("an older head without a tree head".to_owned()))
    };
    let Acceptance { public_key, signature } = shown.acceptance.unwrap_or_default();
    Ok(OlderHead {
        public_key,
        signature,
        given_up: (shown.given_up_size, root(shown.given_up_root)?),
        accepted: (shown.accepted_size, root(shown.accepted_root)?),
        at: shown.at,
    })
}
