//! What an image says about the process it starts.

use std::collections::BTreeMap;

/// The parts of an image's configuration that Kubernetes falls back to, and its user database.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerImage {
    /// The reference by which the guest pulls it, with its digest.
    pub reference: String,
    /// `user`, `user:group`, or numbers; empty means root. The group is never used.
    pub user: String,
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// What is run.
    pub entrypoint: Vec<String>,
    /// Its arguments.
    pub cmd: Vec<String>,
    /// Where it is run.
    pub working_dir: String,
    /// Directories for which the runtime makes anonymous volumes.
    pub volumes: Vec<String>,
    /// `/etc/passwd` of the image.
    pub passwd: String,
    /// `/etc/group` of the image.
    pub group: String,
}

/// Images by the reference that the YAML gives.
pub type Images = BTreeMap<String, ContainerImage>;

/// A user and groups as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Groups of the image that list the user.
    pub(crate) groups: Vec<u32>,
}

/// The image has no such user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image {image} says user {user:?}, which its /etc/passwd does not know")]
pub struct UnknownUser {
    image: String,
    user: String,
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
}

impl ContainerImage {
    /// An image that nobody looked at: what runs is only what the YAML says.
    pub fn unread(reference: &str) -> Self {
        Self { reference: reference.to_owned(), ..Self::default() }
    }

    fn accounts(&self) -> impl Iterator<Item = Account<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
            Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()? })
        })
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
            Some((name, gid.parse().ok()?, fields.next().unwrap_or_default()))
        })
    }

    /// The image's user as the kubelet and the runtime resolve it. The kubelet passes on the user alone, so the group of
    /// `user:group` is never used, and need not exist.
    pub(crate) fn user(&self) -> Result<User, UnknownUser> {
        let user = self.user.split(':').next().unwrap_or_default();
        let user = if user.is_empty() { "0" } else { user };
        // What looks like a number is one, whatever the image calls its users.
        if let Ok(uid) = user.parse() {
            return Ok(self.with_uid(uid));
        }
        let account = self.accounts().find(|account| account.name == user);
        let unknown = || UnknownUser { image: self.reference.clone(), user: self.user.clone() };
        account.map(|account| self.with_account(account.uid, Some(&account))).ok_or_else(unknown)
    }

    /// A numeric user with what the image knows of it; an unknown one is in group 0.
    pub(crate) fn with_uid(&self, uid: u32) -> User {
        self.with_account(uid, self.accounts().find(|account| account.uid == uid).as_ref())
    }

    fn with_account(&self, uid: u32, account: Option<&Account<'_>>) -> User {
        let Some(account) = account else { return User { uid, gid: 0, groups: Vec::new() } };
        let lists = |members: &str| members.split(',').any(|member| member == account.name);
        let groups = self.groups().filter(|(_, _, members)| lists(members)).map(|(_, gid, _)| gid).collect();
        User { uid, gid: account.gid, groups }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_resolved_through_the_images_own_files() {
        let image = |user: &str| ContainerImage {
            user: user.into(),
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/false\nbroken\n".into(),
            group: "root:x:0:\nweb:x:102:\nlogs:x:7:web,root\nssl:x:9:web\n".into(),
            ..ContainerImage::default()
        };
        let user = |text: &str| image(text).user().map(|user| (user.uid, user.gid, user.groups));
        assert_eq!(user(""), Ok((0, 0, vec![7])));
        assert_eq!(user("web"), Ok((101, 102, vec![7, 9])));
        assert_eq!(user("101"), Ok((101, 102, vec![7, 9])));
        assert_eq!(user("web:ssl"), Ok((101, 102, vec![7, 9])), "the group is not passed on");
        assert_eq!(user("101:ssl"), Ok((101, 102, vec![7, 9])));
        assert_eq!(user("5000:6000"), Ok((5000, 0, vec![])));
        assert_eq!(user("5000"), Ok((5000, 0, vec![])));
        assert!(user("nobody").unwrap_err().to_string().contains("\"nobody\""));
        assert_eq!(user("web:wheel"), Ok((101, 102, vec![7, 9])), "and need not exist");
    }
}
