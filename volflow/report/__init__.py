"""What people look at: pictures, viewers, facts of volumes and runs."""
