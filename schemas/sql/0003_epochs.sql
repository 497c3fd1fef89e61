-- Epochs come with the ownership of a read model, from the cluster's map.
drop sequence flexcore.epochs;
